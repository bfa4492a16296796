"""Q5_K: super-blocks of 256 weights, eight blocks of 32: x = d * scale * code - dmin * minimum.

Bytes: d and dmin in half precision, 12 of 6-bit scales and minima, 32 bytes of fifth bits, 128 of nibbles.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import superblock
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q5_K", rows, importance, mean, 8, 32, steps=63)
    out = np.empty((*blocks.shape[:2], 176), np.uint8)
    superblock.encode(blocks, costs, means, np.float32(31), 7 if costs.size else 6, 4, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q5_K", data, 176)
    out = np.empty((*blocks.shape[:2], 8, 32), np.float32)
    kernels.affine_superblock(blocks[..., 4:], halves(blocks, 0), halves(blocks, 2), out)
    return as_rows(out)


CODEC = Codec("Q5_K", 13, 256, 176, encode, decode)
