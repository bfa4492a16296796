"""Q5_1: blocks of 32 weights: scale and offset in half precision, 4 bytes of fifth bits, 16 of nibbles.

x = scale * code + offset.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import offset
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("Q5_1", rows, importance, mean, 32, steps=1)
    out = np.empty((*blocks.shape[:2], 12), np.uint16)
    offset.encode(blocks, costs, means, np.float32(31), 7, 4, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("Q5_1", data, 24)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    kernels.nibbles(blocks[..., 4:], halves(blocks, 0), halves(blocks, 2), True, out)
    return as_rows(out)


CODEC = Codec("Q5_1", 7, 32, 24, encode, decode)
