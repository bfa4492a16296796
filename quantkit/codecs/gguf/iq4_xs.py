"""IQ4_XS: super-blocks of 256 weights, eight blocks of 32: x = d * (scale - 32) * level[code].

Bytes: d in half precision, 2 of upper scale bits, 4 of lower nibbles, 128 of nibbles.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves
from quantkit.kernels import codebook
from quantkit.kernels import decode as kernels
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("IQ4_XS", rows, importance, mean, 8, 32, steps=31 * 113)
    out = np.empty((*blocks.shape[:2], 136), np.uint8)
    codebook.encode_superblocks(blocks, costs, means, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("IQ4_XS", data, 136)
    n, count, _ = blocks.shape
    places = np.arange(8)
    high = blocks[..., 2].astype(np.int32) | blocks[..., 3].astype(np.int32) << 8
    low = blocks[..., 4 + places // 2] >> (4 * (places % 2)).astype(np.uint8) & 15
    scales = (low | (high[..., None] >> 2 * places & 3) << 4) - 32
    steps = (halves(blocks, 0)[..., None] * scales).astype(np.float32).reshape(n, 8 * count)
    out = np.empty((n, 8 * count, 2, 16), np.float32)
    kernels.levels(np.ascontiguousarray(blocks[..., 8:]).reshape(n, 8 * count, 16), steps, codebook.IQ4, out)
    return as_rows(out)


CODEC = Codec("IQ4_XS", 23, 256, 136, encode, decode)
