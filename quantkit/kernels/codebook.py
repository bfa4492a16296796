"""IQ4_NL and IQ4_XS: x ~ scale * level, with sixteen levels that lie closer together near zero than at the ends.

The levels are a smooth curve of their codes: a polynomial of degree four gives every one of them exactly once it is
rounded, and one of degree five the code of a value, wrong only within 2.5 % of a step around the midpoints, which the last
rounding mends. So the search has neither tables nor branches, and vectorises.
"""

import numpy as np

from quantkit.kernels.feedback import lean, miss
from quantkit.kernels.halves import TINY, covering_half, from_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.packing import store_codes
from quantkit.kernels.symmetric import find_peaks

BLOCK = 32
_LEAST = np.float32(-127)
_GREATEST = np.float32(113)
_TOP = np.float32(15)
# code ~ c0 + y (c1 + y (c2 + ...)) of a value y, level ~ l0 + code (l1 + ...): minimax fits to ggml's kvalues_iq4nl
_C0, _C1, _C2 = np.float32(7.878435524), np.float32(0.08529235068), np.float32(1.950970607e-06)
_C3, _C4, _C5 = np.float32(-2.743542624e-06), np.float32(-6.916324556e-10), np.float32(8.186579415e-11)
_L0, _L1, _L2 = np.float32(-126.5664317), np.float32(24.17222344), np.float32(-1.371539478)
_L3, _L4 = np.float32(0.03105468850), np.float32(0.001586901845)
_COARSE = np.float32(3e-5)  # below, halves are steps of 2^-24: those on either side are tried
_MARGIN = np.float32(1.000001)  # a gain within rounding is none
_ZERO = np.float32(0)
_ONE = np.float32(1)
_WIDEST = np.float32(32)  # sub-scales of IQ4_XS: -32..31


@kernel
def level(code):
    """The level of a code 0..15, both float32."""
    return np.rint(_L0 + code * (_L1 + code * (_L2 + code * (_L3 + code * _L4))))


@kernel
def near_code(y):
    """A code whose level is nearest y, or next to nearest where y is about halfway; float32."""
    y = min(max(y, _LEAST), _GREATEST)
    return np.rint(_C0 + y * (_C1 + y * (_C2 + y * (_C3 + y * (_C4 + y * _C5)))))


@kernel
def level_sums(x, weight, inverse):
    """Weighted sums of level * x and level^2 for the levels near x * inverse."""
    products = squares = _ZERO
    for i in range(BLOCK):
        q = level(near_code(x[i] * inverse))
        weighted = weight[i] * q
        products += weighted * x[i]
        squares += weighted * q
    return products, squares


@kernel
def level_error(x, weight, scale):
    """Weighted squared error of 32 weights under x ~ scale * level."""
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    error = _ZERO
    for i in range(BLOCK):
        off = x[i] - scale * level(near_code(x[i] * inverse))
        error += weight[i] * off * off
    return error


@kernel
def search_scale(x, weight, peak, steps, nudges):
    """The scale of least weighted error among those that put the peak at the levels `steps`, and `nudges` times the best of
    these, the winner settled twice by rounding and solving again; with the curvature: sum of weight * level^2.
    """
    best = scale = step = curvature = _ZERO
    if abs(peak) < TINY:
        return scale, curvature
    for trial in range(steps.size):
        products, squares = level_sums(x, weight, steps[trial] / peak)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
        step = steps[trial] if better else step
    for trial in range(nudges.size):
        products, squares = level_sums(x, weight, step * nudges[trial] / peak)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
    for _ in range(2):
        if scale != _ZERO:
            products, squares = level_sums(x, weight, _ONE / scale)
            scale = products / squares if squares > _ZERO else scale
            curvature = squares
    return scale, curvature


@kernel
def round_levels(x, inverse, quants, levels):
    """Codes of the levels nearest x * inverse, the upper of two as near, into uint8 quants, and these levels."""
    for i in range(BLOCK):
        y = x[i] * inverse
        code = near_code(y)
        q = level(code)
        lower, upper = level(max(code - _ONE, _ZERO)), level(min(code + _ONE, _TOP))
        up = (upper - y <= y - q) & (upper > q)
        down = (y - lower < q - y) & (lower < q)
        code += (_ONE if up else _ZERO) - (_ONE if down else _ZERO)
        levels[i] = upper if up else lower if down else q
        quants[i] = np.uint8(np.int32(code))


@kernel
def fill_weights(x, weight):
    """ggml's weights of the 4-bit codebook types without importance: x^2."""
    for i in range(x.size):
        weight[i] = x[i] * x[i]


@kernel
def near_scale(x, weight, scale):
    """Bits of the half nearest `scale`; where halves are coarse, of the better of the two around it."""
    bits = to_half(scale)
    if abs(scale) > _COARSE or scale == _ZERO:
        return bits
    low = np.int32(abs(scale) * np.float32(16777216))
    sign = np.int32(0x8000) if scale < _ZERO else np.int32(0)
    one, other = np.int32(low | sign), np.int32((low + 1) | sign)
    return one if level_error(x, weight, from_half(one)) < level_error(x, weight, from_half(other)) else other


@kernel
def encode(rows, importance, means, gains, steps, nudges, out):
    """IQ4_NL of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 9).

    importance: (blocks, 32), or of size 0, when the weights are x^2; means, gains: (blocks, 32) for `feedback`, or of size
    0; steps, nudges: of `search_scale`, which takes the place of ggml's quantize_row_iq4_nl_impl (MIT): that tries sixteen
    scales within 6 % of the one that puts the peak at -127, and settles none.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(rows.shape[1], np.float32)
    weight = np.empty(BLOCK, np.float32)
    leaning = np.empty(BLOCK, np.float32)
    levels = np.empty(BLOCK, np.float32)
    quants = np.empty(BLOCK, np.uint8)
    words = quants.view(np.uint64)
    for row in range(rows.shape[0]):
        find_peaks(bits[row], peaks)
        owed = _ZERO
        for block in range(peaks.size):
            x = rows[row, block]
            if importance.size > 0:
                weight = importance[block]
            else:
                fill_weights(x, weight)
            scale, _ = search_scale(x, weight, peaks[block], steps, nudges)
            half = near_scale(x, weight, scale)
            scale = from_half(half)
            inverse = _ONE / scale if scale != _ZERO else _ZERO
            if means.size > 0:
                lean(x, owed, gains[block], np.float32(16) * scale, leaning)
                round_levels(leaning, inverse, quants, levels)
                owed += miss(x, means[block], scale, _ZERO, levels)
            else:
                round_levels(x, inverse, quants, levels)
            out[row, block, 0] = np.uint16(half)
            store_codes(words, False, out[row, block], 1)


@kernel
def common_step(scales, curvatures, widest):
    """The step d of least sum of curvature * (scale - d * code)^2 over eight scales, codes within -32..31.

    widest: the scale of greatest magnitude, which is put at -32.6 to -28.2 or, of the other sign, at 31.6 to 27.2; each set
    of codes is solved in closed form.
    """
    best = step = _ZERO
    for trial in range(24):
        span = np.float32(32.6) - np.float32(0.4) * np.float32(trial % 12)
        inverse = (-span if trial < 12 else span - _ONE) / widest
        products = squares = _ZERO
        for j in range(scales.size):
            code = np.rint(min(max(scales[j] * inverse, -_WIDEST), _WIDEST - _ONE))
            products += curvatures[j] * code * scales[j]
            squares += curvatures[j] * code * code
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        step = fitted if better else step
    return step if step != _ZERO else widest / -_WIDEST


@kernel
def sub_scale(x, weight, scale, step):
    """The code within -32..31 that leaves 32 weights the least error under x ~ step * code * level: of the three nearest
    scale / step.
    """
    middle = np.rint(min(max(scale / step, -_WIDEST), _WIDEST - _ONE)) if step != _ZERO else _ZERO
    best, least = middle, level_error(x, weight, step * middle)
    for side in range(2):
        code = middle + (_ONE if side else -_ONE)
        if (code >= -_WIDEST) & (code < _WIDEST):
            error = level_error(x, weight, step * code)
            best = code if error < least else best
            least = min(error, least)
    return best


@kernel
def encode_super(rows, importance, means, gains, steps, nudges, out):
    """IQ4_XS of float32 rows (n, super-blocks, 8, 32) into uint16 out (n, super-blocks, 68); the other arguments as
    `encode`'s, of (super-blocks, 8, 32).

    A half d, sixteen bits of the sub-scales' upper pairs, 4 bytes of their lower nibbles, 128 of codes; x = d * (sub-scale
    - 32) * level. d is fitted to all eight blocks' scales by what each costs, then every sub-scale is chosen by the error
    it really leaves; ggml takes d from the greatest scale alone and rounds the others.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(8, np.float32)
    scales = np.empty(8, np.float32)
    curvatures = np.empty(8, np.float32)
    weight = np.empty((8, BLOCK), np.float32)
    leaning = np.empty(BLOCK, np.float32)
    levels = np.empty(BLOCK, np.float32)
    quants = np.empty(BLOCK, np.uint8)
    words = quants.view(np.uint64)
    for row in range(rows.shape[0]):
        owed = _ZERO
        for block in range(rows.shape[1]):
            find_peaks(bits[row, block], peaks)
            if importance.size > 0:
                weight = importance[block]
            widest = _ZERO
            for j in range(8):
                x = rows[row, block, j]
                if importance.size == 0:
                    fill_weights(x, weight[j])
                scales[j], curvatures[j] = search_scale(x, weight[j], peaks[j], steps, nudges)
                widest = scales[j] if abs(scales[j]) > abs(widest) else widest
            step = common_step(scales, curvatures, widest) if widest != _ZERO else _ZERO
            half = to_half(step) if abs(step) > _COARSE else covering_half(step, _WIDEST, abs(widest))
            step = from_half(half)
            target = out[row, block]
            target[0] = np.uint16(half)
            target[1] = target[2] = target[3] = np.uint16(0)
            for j in range(8):
                x = rows[row, block, j]
                code = sub_scale(x, weight[j], scales[j], step)
                scale = step * code
                inverse = _ONE / scale if scale != _ZERO else _ZERO
                if means.size > 0:
                    lean(x, owed, gains[block, j], np.float32(16) * scale, leaning)
                    round_levels(leaning, inverse, quants, levels)
                    owed += miss(x, means[block, j], scale, _ZERO, levels)
                else:
                    round_levels(x, inverse, quants, levels)
                stored = np.uint32(np.int32(code) + 32)
                target[1] |= np.uint16((stored >> np.uint32(4)) << np.uint32(2 * j))
                target[2 + j // 4] |= np.uint16((stored & np.uint32(15)) << np.uint32(4 * (j % 4)))
                store_codes(words, False, target, 4 + 8 * j)


@kernel
def decode(data, scales, out):
    """uint8 data (n, blocks, 16) and float32 scales (n, blocks) to float32 out (n, blocks, 2, 16)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for i in range(16):
                out[row, block, 0, i] = scales[row, block] * level(np.float32(data[row, block, i] & 15))
                out[row, block, 1, i] = scales[row, block] * level(np.float32(data[row, block, i] >> 4))
