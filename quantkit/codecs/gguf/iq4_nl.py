"""IQ4_NL: blocks of 32 weights: a half-precision scale, 16 bytes of nibbles; x = scale * level[code]."""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import codebook
from quantkit.kernels import decode as kernels
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("IQ4_NL", rows, importance, mean, 32, steps=113)
    out = np.empty((*blocks.shape[:2], 9), np.uint16)
    codebook.encode(blocks, costs, means, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("IQ4_NL", data, 18)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    kernels.levels(blocks[..., 2:], halves(blocks, 0), codebook.IQ4, out)
    return as_rows(out)


CODEC = Codec("IQ4_NL", 20, 32, 18, encode, decode)
