"""IEEE half precision by integer arithmetic, without branches so that loops over scales vectorise (numba has no
float16 on CPUs).
"""

import numpy as np

from quantkit.kernels.jit import kernel

TINY = np.float32(1e-20)  # blocks below this are taken for zero: no half is as small, and their inverse stays finite
_SUBNORMAL = np.float32(1 / 16777216)  # below 2^-14 a half counts steps of 2^-24
_REBIAS = np.int32(0x38000000)  # the exponents' biases differ by 112


@kernel
def to_half(value):
    """Bits (int32) of the nearest finite half, ties to even: beyond the range the largest half, never infinity."""
    bits = np.float32(value).view(np.int32)
    sign = np.int32((bits >> 16) & 0x8000)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    normal = min(np.int32((magnitude + 0xFFF + ((magnitude >> 13) & 1) - _REBIAS) >> 13), np.int32(0x7BFF))
    steps = np.int32(np.rint(min(abs(np.float32(value)), np.float32(1)) / _SUBNORMAL))
    return np.int32(sign | (steps if magnitude < 0x38800000 else normal))


@kernel
def encode(rows, out):
    """Nearest finite halves of float32 rows (n, width), as uint16 bits."""
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            out[row, i] = np.uint16(to_half(rows[row, i]))


@kernel
def from_half(bits):
    """The float32 that the bits of a finite half stand for."""
    magnitude = np.int32(bits & 0x7FFF)
    normal = np.int32((magnitude << 13) + _REBIAS).view(np.float32)
    value = np.float32(magnitude) * _SUBNORMAL if magnitude < 0x400 else normal
    return -value if bits & 0x8000 else value


@kernel
def near_half(value):
    """`value` rounded to a half's eleven significant bits whatever its exponent: for a search to reckon with."""
    return np.int32((np.float32(value).view(np.int32) + np.int32(0x1000)) & np.int32(-0x2000)).view(np.float32)


@kernel
def covering_half(value, reach, peak):
    """Bits (int32) of the half nearest `value`, one step away from zero where `reach` of it would not cover `peak`; 0
    for 0.

    Tiny scales are subnormal halves: rounding one down could cut a quarter off the largest weights.
    """
    bits = to_half(value)
    short = (abs(from_half(bits)) * reach < peak) & ((bits & 0x7FFF) < 0x7BFF) & (value != np.float32(0))
    return np.int32(bits + 1 if short else bits)
