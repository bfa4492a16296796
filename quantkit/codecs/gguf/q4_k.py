"""Q4_K: super-blocks of 256 weights, eight blocks of 32: x = d * scale * code - dmin * minimum.

Bytes: d and dmin in half precision, 12 of 6-bit scales and minima, 128 of nibbles.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import superblock
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q4_K", rows, importance, mean, 8, 32, steps=63)
    out = np.empty((*blocks.shape[:2], 144), np.uint8)
    superblock.encode(blocks, costs, means, np.float32(15), 7 if costs.size else 6, 4, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q4_K", data, 144)
    out = np.empty((*blocks.shape[:2], 8, 32), np.float32)
    kernels.affine_superblock(blocks[..., 4:], halves(blocks, 0), halves(blocks, 2), out)
    return as_rows(out)


CODEC = Codec("Q4_K", 12, 256, 144, encode, decode)
