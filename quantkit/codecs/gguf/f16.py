"""F16: IEEE half precision, rounded to nearest, ties to even."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, check_rows, halves
from quantkit.errors import WeightError
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None) -> U8:  # noqa: ARG001
    """WeightError where a weight would become infinite: halves end at 65504."""
    with np.errstate(over="ignore"):
        encoded = check_rows("F16", rows, 1).astype(np.float16)
    reach = encoded.view(np.uint16) & 0x7FFF
    if reach.size and reach.max() >= 0x7C00:
        row = int((reach >= 0x7C00).any(axis=1).argmax())
        worst = float(np.abs(rows[row]).max())
        raise WeightError(f"row {row} holds {worst:g}, F16 ends at 65504: choose BF16 or F32 for this tensor")
    return encoded.view(np.uint8)


def decode(data: U8) -> F32:
    return halves(as_blocks("F16", data, 2), 0)


CODEC = Codec("F16", 1, 1, 2, encode, decode)
