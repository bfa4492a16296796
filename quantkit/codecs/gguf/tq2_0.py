"""TQ2_0: super-blocks of 256 weights: 64 bytes of bit pairs, a half-precision scale; x = scale * (code - 1)."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import decode as kernels
from quantkit.kernels import ternary
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("TQ2_0", rows, importance, mean, 256, steps=1)
    out = np.empty((*blocks.shape[:2], 66), np.uint8)
    ternary.encode(blocks, costs, means, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("TQ2_0", data, 66)
    out = np.empty((*blocks.shape[:2], 2, 4, 32), np.float32)
    kernels.ternary_pairs(blocks, halves(blocks, 64), out)
    return as_rows(out)


CODEC = Codec("TQ2_0", 35, 256, 66, encode, decode)
