"""GPTQ's checkpoint layout, of AutoGPTQ and GPTQModel: codes packed along the inputs, zeros along the outputs.

For a linear of `in` inputs and `out` outputs: qweight int32 (in * bits / 32, out), qzeros int32 (groups, out * bits / 32),
scales float16 (groups, out), g_idx int32 (in,). Version 1 stores every zero less one, modulo 2 ** bits: readers add it again.
Source: gptqmodel/nn_modules/qlinear/__init__.py, pack_original; auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, pack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.codecs import words
from quantkit.codecs.words import I32
from quantkit.values import F32, U8

BITS = (2, 3, 4, 8)


def pack_codes(codes: U8, bits: int) -> I32:
    """Codes (out, in) as qweight (in * bits / 32, out). Raises ValueError where the inputs fill no whole words."""
    return np.ascontiguousarray(words.pack(codes, bits).T)


def unpack_codes(qweight: I32, bits: int) -> U8:
    """The inverse of `pack_codes`; of some columns of qweight, those outputs' codes."""
    return words.unpack(np.ascontiguousarray(qweight.T), bits)


def pack_zeros(zeros: U8, bits: int, version: int) -> I32:
    """Zeros (out, groups) as qzeros (groups, out * bits / 32) of version 1 or 2. A version 1 reader that adds the one without
    wrapping at 2 ** bits misreads a zero of 0. Raises ValueError where the outputs fill no whole words."""
    stored = (zeros - np.uint8(2 - version)) & np.uint8((1 << bits) - 1)
    return words.pack(np.ascontiguousarray(stored.T), bits)


def unpack_zeros(qzeros: I32, bits: int, version: int) -> NDArray[np.int16]:
    """The inverse of `pack_zeros`, as readers have it: of version 1, a stored 2 ** bits - 1 is 2 ** bits."""
    return np.ascontiguousarray(words.unpack(qzeros, bits).T).astype(np.int16) + np.int16(2 - version)


def dequantise(codes: U8, scales: F32, zeros: NDArray[np.int16], groups: NDArray[np.intp]) -> F32:
    """Weights (rows, in): scale * (code - zero), of codes (rows, in), scales and zeros (rows, groups), and the group of every
    input (in,)."""
    return (codes.astype(np.float32) - zeros.astype(np.float32)[:, groups]) * scales[:, groups]
