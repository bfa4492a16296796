"""BF16: the upper half of a float32, rounded to nearest, ties to even."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, check_rows
from quantkit.kernels import bfloat
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:  # noqa: ARG001
    rows = check_rows("BF16", rows, 1)
    out = np.empty(rows.shape, np.uint16)
    bfloat.encode(rows, out)
    return out.view(np.uint8)


def decode(data: U8) -> F32:
    bits = as_blocks("BF16", data, 2).view(np.uint16)[..., 0].astype(np.uint32)
    return (bits << 16).view(np.float32)


CODEC = Codec("BF16", 30, 1, 2, encode, decode)
