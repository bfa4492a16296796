"""Q2_K: super-blocks of 256 weights, sixteen blocks of 16: x = d * scale * code - dmin * minimum.

Bytes: 16 of a 4-bit scale and a 4-bit minimum each, 64 of bit pairs, d and dmin in half precision.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, side_by_side
from quantkit.kernels import decode as kernels
from quantkit.kernels import superblock2
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q2_K", rows, importance, mean, 256, steps=15)
    in_lanes = side_by_side(costs)
    out = np.empty((*blocks.shape[:2], 84), np.uint8)
    superblock2.encode(blocks, costs, in_lanes, means, *((9, 4) if costs.size else (6, 2)), out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q2_K", data, 84)
    out = np.empty((*blocks.shape[:2], 16, 16), np.float32)
    kernels.affine_superblock2(blocks, halves(blocks, 80), halves(blocks, 82), out)
    return as_rows(out)


CODEC = Codec("Q2_K", 10, 256, 84, encode, decode)
