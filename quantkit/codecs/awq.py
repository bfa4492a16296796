"""AWQ's checkpoint layout "gemm": eight 4-bit codes of neighbouring outputs in a word, in an order that suits a GPU.

qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales float16 (groups, out). Source: awq/modules/linear/gemm.py,
WQLinear_GEMM.from_linear, of AutoAWQ.
"""

from __future__ import annotations

import numpy as np

from quantkit.codecs import words
from quantkit.codecs.words import I32
from quantkit.values import U8

OUTPUTS = 8  # of one word
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each field of a word belongs to, from the lowest


def pack(codes: U8) -> I32:
    """Codes (out, rows) below 16 as words (rows, out / 8)."""
    fields = codes.T.reshape(codes.shape[1], -1, OUTPUTS)[..., list(_ORDER)]
    return words.pack(np.ascontiguousarray(fields).reshape(codes.shape[1], -1), 4)


def unpack(packed: I32) -> U8:
    """The inverse of `pack`; of some columns of words, those outputs' codes."""
    rows, count = packed.shape
    fields = words.unpack(packed, 4).reshape(rows, count, OUTPUTS)
    return np.ascontiguousarray(fields[..., np.argsort(_ORDER)].reshape(rows, count * OUTPUTS).T)
