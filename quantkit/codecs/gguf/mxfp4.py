"""MXFP4: blocks of 32 weights: a power of two (E8M0), 16 bytes of E2M1 nibbles; x = 2^(exponent - 128) * 2 * value.

Source: OCP Microscaling Formats; ggml stores twice the values and half the scale.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut
from quantkit.kernels import codebook
from quantkit.kernels import decode as kernels
from quantkit.values import F32, U8, Codec

_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, costs, means = cut("MXFP4", rows, importance, mean, 32, steps=1e30)
    out = np.empty((*blocks.shape[:2], 17), np.uint8)
    codebook.encode_fp4(blocks, costs, means, out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("MXFP4", data, 17)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    steps = np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 128).astype(np.float32)
    kernels.levels(blocks[..., 1:], steps, _LEVELS, out)
    return as_rows(out)


CODEC = Codec("MXFP4", 39, 32, 17, encode, decode)
