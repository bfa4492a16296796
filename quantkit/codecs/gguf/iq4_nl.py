"""IQ4_NL: blocks of 32 weights: a half-precision scale, 16 bytes of nibbles; x = scale * level[code], sixteen levels from
-127 to 113 that lie closer together near zero.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, means
from quantkit.kernels import codebook
from quantkit.values import F32, U8, Codec

STEPS = np.concatenate([[-127, -88], -np.linspace(102, 143, 7), -np.geomspace(159, 318, 6), np.geomspace(75, 165, 6)])
"""Levels at which the search puts a block's peak."""

NUDGES = np.array([0.945, 0.97, 1.03, 1.058])
"""Factors by which the best of these is tried once more."""


def encode(rows: F32, importance: F32 | None) -> U8:
    blocks, weights = cut("IQ4_NL", rows, importance, 32, reach=113)
    out = np.empty((*blocks.shape[:2], 9), np.uint16)
    steps, nudges = STEPS.astype(np.float32), NUDGES.astype(np.float32)
    codebook.encode(blocks, weights, *means(importance, weights), steps, nudges, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("IQ4_NL", data, 18)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    codebook.decode(np.ascontiguousarray(blocks[..., 2:]), halves(blocks, 0), out)
    return as_rows(out)


CODEC = Codec("IQ4_NL", 20, 32, 18, encode, decode)
