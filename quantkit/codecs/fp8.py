"""8-bit floats and their scales: E4M3 (which has no infinity) and E5M2. Source: OCP 8-bit Floating Point Specification."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from quantkit.values import F32, U8


def decode(raw: U8, kind: str) -> F32:
    """Bytes of "F8_E4M3" or "F8_E5M2" as float32, in their shape."""
    return np.asarray(_table(kind)[raw], np.float32)


@cache
def _table(kind: str) -> Any:
    mantissa, bias = (3, 7) if kind == "F8_E4M3" else (2, 15)
    codes = np.arange(256)
    fraction, exponent = codes & ((1 << mantissa) - 1), (codes & 0x7F) >> mantissa
    scale = np.exp2(np.maximum(exponent, 1) - bias - mantissa)
    values = np.where(codes > 127, -1.0, 1.0) * (fraction + ((exponent > 0) << mantissa)) * scale
    if kind == "F8_E4M3":
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        values[top] = np.where(fraction[top] == 0, np.copysign(np.inf, values[top]), np.nan)
    return values.astype(np.float32)


def covers(scales: tuple[int, ...], shape: tuple[int, int], block: tuple[int, int] | None) -> bool:
    """Whether scales of that shape belong to a matrix of `shape`: see `spread`."""
    rows, width = shape
    if math.prod(scales) == 1 or scales == (rows,):
        return True
    if block is not None:
        return scales == (-(-rows // block[0]), -(-width // block[1]))
    return len(scales) == 2 and scales[0] == rows and scales[1] > 0 and width % scales[1] == 0


def spread(scales: F32, shape: tuple[int, int], block: tuple[int, int] | None, start: int, stop: int) -> F32:
    """Scales for rows [start, stop) of a matrix of `shape`, to multiply them with.

    scales: one for the matrix (), (1,); one for a row (out,), (out, 1); one for a row's group of columns (out, groups); or,
    with `block`, one for a block of rows and columns, ragged at the ends. Raises ValueError for another shape.
    """
    rows, width = shape
    if not covers(scales.shape, shape, block):
        raise ValueError(f"scales {list(scales.shape)} belong to no matrix of {list(shape)}")
    if scales.size == 1:
        return scales.reshape(1, 1)
    if block is not None and scales.shape != (rows,):
        return np.repeat(scales[np.arange(start, stop) // block[0]], block[1], 1)[:, :width]
    grid = scales.reshape(rows, -1)[start:stop]
    return np.repeat(grid, width // grid.shape[1], 1)
