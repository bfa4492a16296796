"""TQ1_0 and TQ2_0: super-blocks of 256 weights with one half-precision scale, x ~ scale * (-1, 0 or 1)."""

import numpy as np

from quantkit.kernels.feedback import lean, miss
from quantkit.kernels.halves import TINY, from_half, to_half
from quantkit.kernels.jit import kernel

_TRIALS = 16
_COARSE = np.float32(3e-5)  # below, halves are steps of 2^-24: those on either side are tried
_MARGIN = np.float32(1.000001)  # a gain within rounding is none
_HALF = np.float32(0.5)
_ZERO = np.float32(0)
_ONE = np.float32(1)


@kernel
def greatest(bits):
    """The greatest magnitude among the float32s of an int32 array (blocks, 32)."""
    top = np.int32(0)
    for j in range(bits.shape[0]):
        for i in range(bits.shape[1]):
            top = max(top, np.int32(bits[j, i] & 0x7FFFFFFF))
    return np.int32(top).view(np.float32)


@kernel
def kept_sums(x, weight, threshold):
    """Sums of weight * |x| and of the weights (8, 32) where |x| reaches the threshold."""
    products = squares = _ZERO
    for j in range(x.shape[0]):
        for i in range(x.shape[1]):
            size = abs(x[j, i])
            kept = weight[j, i] if size >= threshold else _ZERO
            products += kept * size
            squares += kept
    return products, squares


@kernel
def search_scale(x, weight, peak):
    """The scale of least weighted error: that of ggml, the peak itself, or the mean of what lies above one of sixteen
    thresholds, from half the peak to 2 % of it, settled twice. ggml's wins ties: ternary weights keep their scale.
    """
    if peak < TINY:
        return _ZERO
    products, squares = kept_sums(x, weight, _HALF * peak)
    scale, best = peak, peak * (products + products - peak * squares)
    threshold = _HALF * peak
    for _ in range(_TRIALS):
        products, squares = kept_sums(x, weight, threshold)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
        threshold *= np.float32(0.807)
    for _ in range(2):
        products, squares = kept_sums(x, weight, _HALF * scale)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
    return scale


@kernel
def saved(x, weight, scale):
    """By how much less the weighted squared error is with a scale than with zeros."""
    products, squares = kept_sums(x, weight, _HALF * scale)
    return scale * (products + products - scale * squares)


@kernel
def near_scale(x, weight, scale):
    """Bits of the half nearest the scale; where halves are coarse, of the better of the two around it."""
    bits = to_half(scale)
    if scale > _COARSE:
        return bits
    low = np.int32(scale * np.float32(16777216))
    high = np.int32(low + 1)
    return high if saved(x, weight, from_half(high)) > saved(x, weight, from_half(low)) else low


@kernel
def round_trits(x, scale, trits):
    """-1, 0 or 1 for 32 weights into int8 trits, by comparison with half the scale."""
    threshold = _HALF * scale
    for i in range(x.size):
        trits[i] = np.int8((1 if x[i] >= threshold else 0) - (1 if x[i] <= -threshold else 0))


@kernel
def pack_base3(trits, source, stride, count, out, at):
    """`stride` bytes from out[at]: byte m holds trits[source + m], + stride, ... (5 of them, or 4 and a zero), the first
    most significant, as a fraction of 256 rounded up: so that multiplying by 3 carries trit after trit out on top.
    """
    for m in range(stride):
        value = np.uint32(0)
        for n in range(5):
            trit = np.uint32(np.int32(trits[source + m + n * stride]) + 1) if n < count else np.uint32(0)
            value = value * np.uint32(3) + trit
        out[at + m] = np.uint8((value * np.uint32(256) + np.uint32(242)) // np.uint32(243))


@kernel
def pack_pairs(trits, out):
    """256 trits as 64 bytes of two bits each: byte 32 k + m holds trits 128 k + m, + 32, + 64, + 96, the first lowest."""
    for k in range(2):
        for m in range(32):
            value = np.uint32(0)
            for n in range(4):
                value |= np.uint32(np.int32(trits[128 * k + 32 * n + m]) + 1) << np.uint32(2 * n)
            out[32 * k + m] = np.uint8(value)


@kernel
def encode(rows, importance, means, gains, out):
    """TQ1_0 (54 bytes) or TQ2_0 (66) of float32 rows (n, super-blocks, 8, 32) into uint8 out (n, super-blocks, bytes): the
    codes, then a half.

    importance: (super-blocks, 8, 32) or of size 0; means, gains: as importance, for `feedback`, or of size 0. ggml takes the
    greatest magnitude as scale, which is exact for weights that were trained ternary and keeps few of any others.
    """
    bits = rows.view(np.int32)
    weight = np.ones((8, 32), np.float32)
    leaning = np.empty(32, np.float32)
    trits = np.empty(256, np.int8)
    five = out.shape[2] == 54
    for row in range(rows.shape[0]):
        owed = _ZERO
        for block in range(rows.shape[1]):
            x = rows[row, block]
            if importance.size > 0:
                weight = importance[block]
            half = near_scale(x, weight, search_scale(x, weight, greatest(bits[row, block])))
            scale = from_half(half)
            for j in range(8):
                part = trits[32 * j : 32 * j + 32]
                if scale == _ZERO:
                    part[:] = np.int8(0)
                elif means.size > 0:
                    lean(x[j], owed, gains[block, j], scale, leaning)
                    round_trits(leaning, scale, part)
                else:
                    round_trits(x[j], scale, part)
                if means.size > 0:
                    owed += miss(x[j], means[block, j], scale, _ZERO, part)
            target = out[row, block]
            if five:
                pack_base3(trits, 0, 32, 5, target, 0)
                pack_base3(trits, 160, 16, 5, target, 32)
                pack_base3(trits, 240, 4, 4, target, 48)
            else:
                pack_pairs(trits, target)
            target[target.size - 2] = np.uint8(half & 255)
            target[target.size - 1] = np.uint8(half >> 8)


@kernel
def decode_base3(data, scales, out):
    """TQ1_0: uint8 data (n, blocks, 52) and float32 scales (n, blocks) to float32 out (n, blocks, 256)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            source, target = data[row, block], out[row, block]
            for part in range(3):
                first, at, stride, count = ((0, 0, 32, 5), (32, 160, 16, 5), (48, 240, 4, 4))[part]
                for m in range(stride):
                    rest = np.uint32(source[first + m])
                    for n in range(count):
                        rest = (rest & np.uint32(255)) * np.uint32(3)
                        target[at + n * stride + m] = scales[row, block] * np.float32(np.int32(rest >> np.uint32(8)) - 1)


@kernel
def decode_pairs(data, scales, out):
    """TQ2_0: uint8 data (n, blocks, 64) and float32 scales (n, blocks) to float32 out (n, blocks, 256)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for k in range(2):
                for n in range(4):
                    for m in range(32):
                        pair = (data[row, block, 32 * k + m] >> (2 * n)) & 3
                        out[row, block, 128 * k + 32 * n + m] = scales[row, block] * np.float32(np.int32(pair) - 1)
