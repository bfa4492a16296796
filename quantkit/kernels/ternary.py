"""TQ1_0 and TQ2_0: super-blocks of 256 weights with one half-precision scale, x ~ scale * (-1, 0 or 1)."""

import numpy as np

from quantkit.kernels.balance import balance, fill_worths
from quantkit.kernels.codebook import find_peak
from quantkit.kernels.halves import TINY, from_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.superblock2 import pack_quants

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_TRIALS = 12


@kernel
def sums(x, weight, least):
    """Weighted sum of |x| over the weights beyond `least`, and of their weights."""
    values = weights = _ZERO
    for i in range(x.size):
        beyond = abs(x[i]) > least
        values += weight[i] * abs(x[i]) if beyond else _ZERO
        weights += weight[i] if beyond else _ZERO
    return values, weights


@kernel
def search(x, weight):
    """The scale of least weighted error: thresholds at twelve parts of half the peak are solved in closed form, the best
    settles twice. A block that is ternary keeps its scale, which is its peak."""
    peak = abs(find_peak(x))
    best = scale = _ZERO
    if peak < TINY:
        return scale
    for trial in range(_TRIALS):
        values, weights = sums(x, weight, peak * np.float32(_TRIALS - trial) / np.float32(2 * _TRIALS))
        fitted = values / weights if weights > _ZERO else _ZERO
        better = fitted * values > best * np.float32(1.000001)
        best = fitted * values if better else best
        scale = fitted if better else scale
    for _ in range(2):
        values, weights = sums(x, weight, scale / _TWO)
        scale = values / weights if weights > _ZERO else scale
    return scale


@kernel
def encode(rows, costs, means, out):
    """TQ2_0 (66 bytes) or TQ1_0 (54) of float32 rows (n, super-blocks, 256) into uint8 out (n, super-blocks, bytes).

    costs, means: (super-blocks, 256), or of size 0. ggml takes the peak for the scale, which suits weights that are ternary;
    the least squares taken here give the same scale for those, and less error for others.
    """
    ones = np.ones(256, np.float32)
    quants = np.empty((rows.shape[1], 256), np.uint8)
    steps, offsets = np.empty(rows.shape[1], np.float32), np.empty(rows.shape[1], np.float32)
    scratch = np.empty((3, *means.shape), np.float32)
    fill_worths(costs, means, scratch[2])
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            bits = to_half(search(x, costs[block] if costs.size > 0 else ones))
            step = from_half(bits)
            steps[block], offsets[block] = step, -step
            inverse = _ONE / step if step > _ZERO else _ZERO
            for i in range(256):
                quants[block, i] = np.uint8(np.int32(np.rint(min(max(x[i] * inverse, -_ONE), _ONE))) + 1)
            out[row, block, out.shape[2] - 2] = bits & 255
            out[row, block, out.shape[2] - 1] = bits >> 8
        if means.size > 0:
            balance(rows[row], quants, steps, offsets, _TWO, scratch[2], means, scratch[0], scratch[1])
        for block in range(rows.shape[1]):
            if out.shape[2] == 66:
                pack_quants(quants[block], out[row, block])
            else:
                pack_fifths(quants[block], out[row, block])


@kernel
def pack_fifths(quants, target):
    """Bytes 0 to 51 of TQ1_0: five codes to a byte as a fraction of 243 in 256, 32 apart, then 16 apart; the last 16 codes
    four to a byte, 4 apart."""
    for i in range(52):
        start, apart, count = (i, 32, 5) if i < 32 else (128 + i, 16, 5) if i < 48 else (192 + i, 4, 4)
        number = np.int32(0)
        for part in range(count):
            number = number * 3 + np.int32(quants[start + apart * part])
        number = number * 3 if count == 4 else number
        target[i] = np.uint8((number * 256 + 242) // 243)
