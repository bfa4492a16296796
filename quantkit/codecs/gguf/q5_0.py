"""Q5_0: blocks of 32 weights: a half-precision scale, 4 bytes of fifth bits, 16 of nibbles; x = scale * (code - 16)."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import symmetric
from quantkit.values import F32, U8, Codec

TARGETS = np.concatenate([[-16], -np.linspace(13, 17.2, 7), -np.geomspace(18.8, 28, 3), [13, 16.7]], dtype=np.float32)
"""Codes at which the search puts a block's peak."""

NUDGES = np.array([0.98, 1.02], np.float32)
"""Factors by which the best of these is tried once more."""


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q5_0", rows, importance, mean, 32, steps=16)
    out = np.empty((*blocks.shape[:2], 11), np.uint16)
    symmetric.encode(blocks, costs, means, np.float32(16), TARGETS, NUDGES, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q5_0", data, 22)
    scales = halves(blocks, 0)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    kernels.nibbles(blocks[..., 2:], scales, np.float32(-16) * scales, True, out)
    return as_rows(out)


CODEC = Codec("Q5_0", 6, 32, 22, encode, decode)
