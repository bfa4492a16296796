"""Q4_0: blocks of 32 weights: a half-precision scale, 16 bytes of nibbles; x = scale * (code - 8)."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, on_grid
from quantkit.kernels import decode as kernels
from quantkit.kernels import symmetric
from quantkit.values import F32, U8, Codec

TARGETS = np.concatenate([[-8], -np.linspace(6.4, 8.8, 6), -np.geomspace(10, 17, 3), [7, 8.6]], dtype=np.float32)
"""Codes at which the search puts a block's peak."""

NUDGES = np.array([0.97, 1.03], np.float32)
"""Factors by which the best of these is tried once more."""


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q4_0", rows, importance, mean, 32, steps=8)
    out = np.empty((*blocks.shape[:2], 9), np.uint16)
    symmetric.encode(blocks, costs, means, np.float32(8), TARGETS, NUDGES, out)
    return as_bytes(out)


def exact(rows: F32) -> U8 | None:
    """Rows of a symmetric 4-bit grid, whose groups may be larger than a block: the same values, to the bit."""
    found = on_grid(rows, -8, 7)
    if found is None:
        return None
    scales, codes = found[0].astype(np.float16).view(np.uint8), (found[1] + 8).astype(np.uint8)
    return as_bytes(np.concatenate([scales, codes[..., :16] | codes[..., 16:] << 4], -1))


def decode(data: U8) -> F32:
    blocks = as_blocks("Q4_0", data, 18)
    scales = halves(blocks, 0)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    kernels.nibbles(blocks[..., 2:], scales, np.float32(-8) * scales, False, out)
    return as_rows(out)


CODEC = Codec("Q4_0", 2, 32, 18, encode, decode, exact)
