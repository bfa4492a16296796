"""Unsigned integers of a few bits in 32-bit words, the lowest bits first: what GPTQ, AWQ and compressed-tensors pack into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.values import U8

I32 = NDArray[np.int32]


def pack(codes: U8, bits: int) -> I32:
    """Codes (rows, count), each below 2 ** bits, as words (rows, count * bits / 32).

    bits: 2, 3, 4 or 8. Of 3 bits, 32 codes are one stream of 96 bits: two of them lie across words.
    Raises ValueError where the codes fill no whole words.
    """
    rows, count = codes.shape
    if count * bits % (96 if bits == 3 else 32):
        raise ValueError(f"{count} codes of {bits} bits fill no whole words")
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, count * bits)
    return np.packbits(stream, axis=-1, bitorder="little").view("<i4")


def unpack(words: I32, bits: int) -> U8:
    """The inverse of `pack`: words (rows, n) to codes (rows, n * 32 / bits)."""
    rows, count = words.shape
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(rows, 4 * count)
    if bits == 8:
        return raw
    if bits == 3:
        fields = np.unpackbits(raw, axis=-1, bitorder="little").reshape(rows, 32 * count // 3, 3)
        return np.asarray(fields[..., 0] | fields[..., 1] << 1 | fields[..., 2] << 2, np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((raw[..., None] >> shifts) & ((1 << bits) - 1), np.uint8).reshape(rows, 32 * count // bits)
