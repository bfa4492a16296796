"""Q8_0: blocks of 32 weights: a half-precision scale and 32 int8 codes; x = scale * code.

Importance has no say, as in ggml.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, halves, on_grid
from quantkit.kernels import decode as kernels
from quantkit.kernels import symmetric
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8:
    blocks, _, _ = cut("Q8_0", rows, importance, mean, 32, steps=127)
    out = np.empty((*blocks.shape[:2], 17), np.uint16)
    symmetric.encode_bytes(blocks, out)
    return as_bytes(out)


def exact(rows: F32) -> U8 | None:
    """Rows of a symmetric grid of 8 bits or less, whose groups may be larger than a block: the same values, to the bit."""
    found = on_grid(rows, -128, 127)
    if found is None:
        return None
    return as_bytes(np.concatenate([found[0].astype(np.float16).view(np.uint8), found[1].astype(np.int8).view(np.uint8)], -1))


def decode(data: U8) -> F32:
    blocks = as_blocks("Q8_0", data, 34)
    out = np.empty((*blocks.shape[:2], 32), np.float32)
    kernels.signed_bytes(np.ascontiguousarray(blocks[..., 2:]).view(np.int8), halves(blocks, 0), out)
    return as_rows(out)


CODEC = Codec("Q8_0", 8, 32, 34, encode, decode, exact)
