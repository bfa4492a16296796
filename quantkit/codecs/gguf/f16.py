"""F16: IEEE half precision, rounded to nearest, ties to even."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, check_rows, halves
from quantkit.errors import WeightError
from quantkit.kernels import halves as kernels
from quantkit.kernels.finite import first_row_reaching
from quantkit.values import F32, U8, Codec

OVERFLOW = np.float32(65520)  # from here on the nearest half is infinity


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:  # noqa: ARG001
    """WeightError where a weight would become infinite: halves end at 65504."""
    rows = check_rows("F16", rows, 1)
    row = first_row_reaching(rows, OVERFLOW)
    if row >= 0:
        worst = float(np.abs(rows[row]).max())
        raise WeightError(f"row {row} of them holds {worst:g}, F16 ends at 65504: BF16 and F32 hold it")
    out = np.empty(rows.shape, np.uint16)
    kernels.encode(rows, out)
    return out.view(np.uint8)


def decode(data: U8) -> F32:
    return halves(as_blocks("F16", data, 2), 0)


CODEC = Codec("F16", 1, 1, 2, encode, decode)
