"""The layout "pack-quantized" of compressed-tensors: codes packed along the inputs, zeros along the outputs.

weight_packed int32 (out, in * bits / 32), weight_scale (out, groups), weight_zero_point int32 (out * bits / 32, groups) where
the scheme is asymmetric, weight_shape int64 (2,), weight_g_idx int32 (in,) where activations ordered the groups. A code is
its signed value plus 2 ** (bits - 1). Source: compressed_tensors/compressors/quantized_compressors/pack_quantized.py.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs import words
from quantkit.codecs.words import I32
from quantkit.values import U8

BITS = (2, 4, 8)  # which fill whole words; others leave bits unused, and nobody publishes them


def pack_codes(codes: U8, bits: int) -> I32:
    """Codes (out, in) as weight_packed (out, ceil(in * bits / 32))."""
    return words.pack(np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits)))), bits)


def unpack_codes(packed: I32, bits: int, width: int) -> U8:
    """The inverse of `pack_codes` for `width` inputs; of some rows, those outputs' codes."""
    return words.unpack(packed, bits)[:, :width]


def pack_zeros(zeros: U8, bits: int) -> I32:
    """Zeros (out, groups) as weight_zero_point (ceil(out * bits / 32), groups)."""
    return np.ascontiguousarray(pack_codes(np.ascontiguousarray(zeros.T), bits).T)


def unpack_zeros(packed: I32, bits: int, outputs: int) -> U8:
    """The inverse of `pack_zeros` for so many outputs."""
    return np.ascontiguousarray(unpack_codes(np.ascontiguousarray(packed.T), bits, outputs).T)
