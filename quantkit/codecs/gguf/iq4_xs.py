"""IQ4_XS: super-blocks of 256 weights, eight blocks of 32: x = d * (scale - 32) * level[code], the levels of IQ4_NL.

Bytes: d in half precision, two of the 6-bit scales' upper pairs of bits, four of their lower nibbles, 128 of nibbles.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, means
from quantkit.codecs.gguf.iq4_nl import NUDGES, STEPS
from quantkit.kernels import codebook
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None) -> U8:
    blocks, weights = cut("IQ4_XS", rows, importance, 8, 32, reach=31 * 113)
    out = np.empty((*blocks.shape[:2], 68), np.uint16)
    steps, nudges = STEPS.astype(np.float32), NUDGES.astype(np.float32)
    codebook.encode_super(blocks, weights, *means(importance, weights), steps, nudges, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("IQ4_XS", data, 136)
    high = np.ascontiguousarray(blocks[..., 2:4]).view(np.uint16)
    places = np.arange(8)
    codes = (blocks[..., 4 + places // 2] >> (4 * (places % 2)) & 15) | (high >> (2 * places) & 3) << 4
    scales = halves(blocks, 0)[..., None] * (codes.astype(np.float32) - 32)
    n, count = blocks.shape[:2]
    out = np.empty((n, count * 8, 2, 16), np.float32)
    codebook.decode(np.ascontiguousarray(blocks[..., 8:]).reshape(n, count * 8, 16), scales.reshape(n, count * 8), out)
    return as_rows(out)


CODEC = Codec("IQ4_XS", 23, 256, 136, encode, decode)
