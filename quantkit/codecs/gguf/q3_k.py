"""Q3_K: super-blocks of 256 weights, sixteen blocks of 16: x = d * scale * (code - 4).

Bytes: 32 of third bits (inverted: set where 4 is not taken off), 64 of low bit pairs, 12 of 6-bit scales + 32, d in half
precision.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, side_by_side
from quantkit.kernels import decode as kernels
from quantkit.kernels import superblock6
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q3_K", rows, importance, mean, 256, steps=32 * 4)
    in_lanes = side_by_side(costs)
    out = np.empty((*blocks.shape[:2], 110), np.uint8)
    trials = (np.float32(4.8), np.float32(0.25), 10) if costs.size else (np.float32(4.4), np.float32(0.5), 4)
    superblock6.encode(blocks, costs, in_lanes, means, np.float32(4), np.float32(32), *trials, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q3_K", data, 110)
    out = np.empty((*blocks.shape[:2], 16, 16), np.float32)
    kernels.symmetric_superblock3(blocks, halves(blocks, 108), out)
    return as_rows(out)


CODEC = Codec("Q3_K", 11, 256, 110, encode, decode)
