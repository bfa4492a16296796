"""TQ1_0: super-blocks of 256 weights: 52 bytes of base-3 digits, a half-precision scale; x = scale * (digit - 1)."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import ternary
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("TQ1_0", rows, importance, mean, 256, steps=1)
    out = np.empty((*blocks.shape[:2], 54), np.uint8)
    ternary.encode(blocks, costs, means, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("TQ1_0", data, 54)
    out = np.empty((*blocks.shape[:2], 256), np.float32)
    kernels.ternary_digits(blocks, halves(blocks, 52), out)
    return as_rows(out)


CODEC = Codec("TQ1_0", 34, 256, 54, encode, decode)
