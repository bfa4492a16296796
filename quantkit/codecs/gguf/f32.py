"""F32: float32 as it is."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, check_rows
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:  # noqa: ARG001
    return check_rows("F32", rows, 1).view(np.uint8)


def decode(data: U8) -> F32:
    return as_blocks("F32", data, 4).view(np.float32)[..., 0]


CODEC = Codec("F32", 0, 1, 4, encode, decode)
