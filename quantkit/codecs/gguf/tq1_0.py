"""TQ1_0: super-blocks of 256 ternary weights: five codes to a byte (base 3), the last sixteen four to a byte, a half-precision
scale; x = scale * (-1, 0 or 1).
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, means
from quantkit.kernels import ternary
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None) -> U8:
    blocks, weights = cut("TQ1_0", rows, importance, 8, 32, reach=1)
    out = np.empty((*blocks.shape[:2], 54), np.uint8)
    ternary.encode(blocks, weights, *means(importance, weights), out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("TQ1_0", data, 54)
    out = np.empty((*blocks.shape[:2], 256), np.float32)
    ternary.decode_base3(blocks[..., :52], halves(blocks, 52), out)
    return as_rows(out)


CODEC = Codec("TQ1_0", 34, 256, 54, encode, decode)
