"""MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 weights with a power of two as scale and codes of four bits: a sign
and one of 0, 1, 2, 3, 4, 6, 8, 12, which are twice E2M1's values; so the scale is half of what the exponent says.
"""

import numpy as np

from quantkit.kernels.feedback import lean, miss
from quantkit.kernels.jit import kernel
from quantkit.kernels.symmetric import find_peaks

_ZERO = np.float32(0)
_ONE = np.float32(1)
_MARGIN = np.float32(0.999999)  # a lesser error within rounding is none
_GREATEST = np.int32(252)  # 12 times its scale is 2.6e38, and twice as much no float32


@kernel
def scale_of(exponent):
    """2^(exponent - 128), exponent 0..254, as ggml's e8m0_to_fp32_half."""
    bits = (exponent - 1) << 23 if exponent > 1 else 0x200000 << exponent
    return np.int32(bits).view(np.float32)


@kernel
def inverse_of(exponent):
    """2^(128 - exponent), exponent 1..254."""
    return np.int32((255 - exponent) << 23).view(np.float32)


@kernel
def magnitude(y):
    """The nearest magnitude to y >= 0, the lesser of two as near."""
    level = (_ONE if y > np.float32(0.5) else _ZERO) + (_ONE if y > np.float32(1.5) else _ZERO)
    level += (_ONE if y > np.float32(2.5) else _ZERO) + (_ONE if y > np.float32(3.5) else _ZERO)
    level += (np.float32(2) if y > np.float32(5) else _ZERO) + (np.float32(2) if y > np.float32(7) else _ZERO)
    return level + (np.float32(4) if y > np.float32(10) else _ZERO)


@kernel
def error_at(x, weight, inverse):
    """Weighted squared error of 32 weights in units of the scale."""
    error = _ZERO
    for i in range(x.size):
        y = abs(x[i] * inverse)
        off = y - magnitude(y)
        error += weight[i] * off * off
    return error


@kernel
def search_exponent(x, weight, peak):
    """The exponent of least weighted error: ggml's, which puts the peak between 8 and 16 and cuts it off above 12, the next
    above, which keeps all of it, or the next below. 0 for a block of zeros.
    """
    middle = np.int32((np.float32(peak).view(np.int32) & 0x7FFFFFFF) >> 23) - 2
    middle = min(max(middle, np.int32(1)), _GREATEST)
    best = middle
    least = error_at(x, weight, inverse_of(middle))
    above = error_at(x, weight, inverse_of(middle + 1)) * np.float32(4)
    if (middle < _GREATEST) & (above < least * _MARGIN):
        best, least = np.int32(middle + 1), above
    if middle > 1:
        below = error_at(x, weight, inverse_of(middle - 1)) * np.float32(0.25)
        best = np.int32(middle - 1) if below < least * _MARGIN else best
    return best if peak != _ZERO else np.int32(0)


@kernel
def round_codes(x, inverse, quants, levels):
    """Codes of 32 weights into uint8 quants, and what they stand for in units of the scale; zero has no sign."""
    for i in range(x.size):
        y = x[i] * inverse
        level = magnitude(abs(y))
        code = np.int32(level) - (1 if level > np.float32(4) else 0) - (1 if level > np.float32(6) else 0)
        code -= 3 if level > np.float32(8) else 0
        minus = (y < _ZERO) & (level > _ZERO)
        levels[i] = -level if minus else level
        quants[i] = np.uint8(code + (8 if minus else 0))


@kernel
def encode(rows, importance, means, gains, out):
    """MXFP4 of float32 rows (n, blocks, 32) into uint8 out (n, blocks, 17): an exponent, then 16 bytes of which byte i holds
    code i in its low and code 16 + i in its high nibble. importance, means, gains: (blocks, 32) or of size 0.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(rows.shape[1], np.float32)
    weight = np.ones(32, np.float32)
    leaning = np.empty(32, np.float32)
    levels = np.empty(32, np.float32)
    quants = np.empty(32, np.uint8)
    for row in range(rows.shape[0]):
        find_peaks(bits[row], peaks)
        owed = _ZERO
        for block in range(peaks.size):
            x = rows[row, block]
            if importance.size > 0:
                weight = importance[block]
            exponent = search_exponent(x, weight, peaks[block])
            scale = scale_of(exponent)
            inverse = inverse_of(exponent) if exponent > 0 else _ZERO
            if means.size > 0:
                lean(x, owed, gains[block], scale, leaning)
                round_codes(leaning, inverse, quants, levels)
                owed += miss(x, means[block], scale, _ZERO, levels)
            else:
                round_codes(x, inverse, quants, levels)
            target = out[row, block]
            target[0] = np.uint8(exponent)
            for i in range(16):
                target[1 + i] = np.uint8(quants[i] | (quants[16 + i] << 4))


@kernel
def decode(data, scales, out):
    """uint8 data (n, blocks, 16) and float32 scales (n, blocks) to float32 out (n, blocks, 2, 16)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for side in range(2):
                for i in range(16):
                    code = np.int32((data[row, block, i] >> (4 * side)) & 15)
                    size = code & 7
                    level = np.float32(size + (1 if size > 4 else 0) + (1 if size > 5 else 0) + (3 if size > 6 else 0))
                    out[row, block, side, i] = scales[row, block] * (-level if code > 7 else level)
