"""Q6_K: super-blocks of 256 weights, sixteen blocks of 16: x = d * scale * (code - 32).

Bytes: 128 of low nibbles, 64 of upper bit pairs, 16 of int8 scales, d in half precision.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, side_by_side
from quantkit.kernels import decode as kernels
from quantkit.kernels import superblock6
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q6_K", rows, importance, mean, 256, steps=128 * 32)
    in_lanes = side_by_side(costs)
    out = np.empty((*blocks.shape[:2], 210), np.uint8)
    superblock6.encode(
        blocks, costs, in_lanes, means, np.float32(32), np.float32(128), np.float32(32.9), np.float32(0.2), 15, out
    )
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q6_K", data, 210)
    out = np.empty((*blocks.shape[:2], 16, 16), np.float32)
    kernels.symmetric_superblock(blocks, halves(blocks, 208), out)
    return as_rows(out)


CODEC = Codec("Q6_K", 14, 256, 210, encode, decode)
