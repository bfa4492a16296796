"""MXFP4: blocks of 32 weights: an exponent (E8M0), 16 bytes of E2M1 codes; x = 2^(exponent - 128) * twice E2M1's value.

Any float32 has an exponent near it: the type has no range to exceed.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs.blocks import as_blocks, as_bytes, as_rows, cut, means
from quantkit.kernels import microscaling
from quantkit.values import F32, U8, Codec


def encode(rows: F32, importance: F32 | None) -> U8:
    blocks, weights = cut("MXFP4", rows, importance, 32)
    out = np.empty((*blocks.shape[:2], 17), np.uint8)
    microscaling.encode(blocks, weights, *means(importance, weights), out)
    return as_bytes(out)


def decode(data: U8) -> F32:
    blocks = as_blocks("MXFP4", data, 17)
    exponents = blocks[..., 0].astype(np.uint32)
    scales = np.where(exponents < 2, 0x200000 << exponents, (exponents - 1) << 23).astype(np.uint32).view(np.float32)
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    microscaling.decode(blocks[..., 1:], scales, out)
    return as_rows(out)


CODEC = Codec("MXFP4", 39, 32, 17, encode, decode)
