"""Q6_K: super-blocks of 256 weights, sixteen blocks of 16: x = d * scale * (code - 32).

Bytes: 128 of low nibbles, 64 of upper bit pairs, 16 of int8 scales, d in half precision.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import superblock6
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None) -> U8:
    blocks, weights = cut("Q6_K", rows, importance, 256)
    in_lanes = np.ascontiguousarray(weights.reshape(-1, 16, 16).transpose(0, 2, 1)).reshape(weights.shape)
    out = np.empty((*blocks.shape[:2], 210), np.uint8)
    superblock6.encode(blocks, in_lanes, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q6_K", data, 210)
    out = np.empty((*blocks.shape[:2], 16, 16), np.float32)
    kernels.symmetric_superblock(blocks, halves(blocks, 208), out)
    return as_rows(out)


CODEC = Codec("Q6_K", 14, 256, 210, encode, decode)
