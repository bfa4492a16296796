"""TQ2_0: super-blocks of 256 ternary weights: four codes of two bits to a byte, a half-precision scale;
x = scale * (-1, 0 or 1).
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, means
from quantkit.kernels import ternary
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None) -> U8:
    blocks, weights = cut("TQ2_0", rows, importance, 8, 32, reach=1)
    out = np.empty((*blocks.shape[:2], 66), np.uint8)
    ternary.encode(blocks, weights, *means(importance, weights), out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("TQ2_0", data, 66)
    out = np.empty((*blocks.shape[:2], 256), np.float32)
    ternary.decode_pairs(blocks[..., :64], halves(blocks, 64), out)
    return as_rows(out)


CODEC = Codec("TQ2_0", 35, 256, 66, encode, decode)
