"""Q4_0, Q5_0 and Q8_0: blocks of 32 weights with one half-precision scale, x ~ scale * code."""

import numpy as np

from quantkit.kernels.affine import BLOCK, any_coarse, storable_scale
from quantkit.kernels.balance import balance, fill_worths
from quantkit.kernels.halves import TINY, from_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.packing import store_codes, store_word

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_MARGIN = np.float32(1.000001)  # a gain within rounding is none


@kernel
def plain_scale(x, inverse, reach):
    """Least-squares scale of the codes rint(x * inverse) up to reach - 1; `inverse` takes none below -reach."""
    products = squares = _ZERO
    for i in range(BLOCK):
        code = np.rint(min(x[i] * inverse, reach - _ONE))
        products += code * x[i]
        squares += code * code
    return products / squares if squares > _ZERO else _ZERO


@kernel
def weighted_sums(x, weight, inverse, reach):
    """Weighted sums of code * x and code^2 for the codes rint(x * inverse) within -reach..reach - 1."""
    products = squares = _ZERO
    for i in range(BLOCK):
        code = np.rint(min(max(x[i] * inverse, -reach), reach - _ONE))
        weighted = weight[i] * code
        products += weighted * x[i]
        squares += weighted * code
    return products, squares


@kernel
def weighted_scale(x, weight, peak, reach, targets, nudges):
    """The scale of least weighted error among those that put the peak at the codes `targets`, and `nudges` times the best
    of these; the winner is settled once.

    Where weights differ by orders of magnitude the best scale may cut off a peak that hardly any input meets, and the side
    of the codes that has one more may serve either sign. On a constant block all scales fit alike: the first wins ties.
    """
    best = scale = chosen = _ZERO
    if abs(peak) < TINY:
        return scale
    for trial in range(targets.size):
        products, squares = weighted_sums(x, weight, targets[trial] / peak, reach)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
        chosen = targets[trial] if better else chosen
    for trial in range(nudges.size):
        products, squares = weighted_sums(x, weight, chosen * nudges[trial] / peak, reach)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
    if scale != _ZERO:
        products, squares = weighted_sums(x, weight, _ONE / scale, reach)
        scale = products / squares if squares > _ZERO else scale
    return scale


@kernel
def round_codes(x, inverse, reach, quants):
    """Codes + reach of 32 weights into uint8 quants; `inverse` is that of the stored scale."""
    for i in range(BLOCK):
        quants[i] = np.uint8(np.int32(np.rint(min(max(x[i] * inverse, -reach), reach - _ONE)) + reach))


@kernel
def find_peaks(bits, peaks):
    """The weight of greatest magnitude, with its sign, of every block in the int32 bits (blocks, 32) of a row.

    One integer maximum: with the sign bit rotated to the low end, magnitudes decide.
    """
    for block in range(bits.shape[0]):
        key = np.uint32(0)
        for i in range(bits.shape[1]):
            word = np.uint32(bits[block, i])
            key = max(key, np.uint32((word << np.uint32(1)) | (word >> np.uint32(31))))
        peaks[block] = np.uint32((key >> np.uint32(1)) | (key << np.uint32(31))).view(np.float32)


@kernel
def store_scales(scales, halves):
    """Turn float32 scales into halves (uint16); in place, `scales` becomes the inverse of what is stored, or 0."""
    for block in range(scales.size):
        bits = to_half(scales[block])
        scale = from_half(bits)
        halves[block] = np.uint16(bits)
        scales[block] = _ONE / scale if scale != _ZERO else _ZERO


@kernel
def encode(rows, costs, means, reach, targets, nudges, out):
    """Q4_0 (reach 8) or Q5_0 (reach 16) of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 9 or 11).

    costs, means: (blocks, 32), or of size 0. Without costs the scale that puts the peak at -reach, as ggml's, is refitted by
    least squares to the codes it gives: the squared error falls. With them, `weighted_scale` takes the place of
    make_qx_quants (MIT), which tries nineteen scales that put the peak within 0.9 of -reach and settles none; with means,
    codes are balanced. targets, nudges: of `weighted_scale`.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(rows.shape[1], np.float32)
    scales = np.empty(rows.shape[1], np.float32)
    steps = np.empty(rows.shape[1], np.float32)
    halves = np.empty(rows.shape[1], np.uint16)
    ones = np.ones(BLOCK, np.float32)
    few = np.empty(BLOCK, np.uint8)
    words = few.view(np.uint64)
    quants = np.empty((means.shape[0], BLOCK), np.uint8)
    scratch = np.empty((3, *means.shape), np.float32)
    fill_worths(costs, means, scratch[2])
    fifths = out.shape[2] > 9
    for row in range(rows.shape[0]):
        find_peaks(bits[row], peaks)
        if costs.size > 0:
            for block in range(peaks.size):
                scale = weighted_scale(rows[row, block], costs[block], peaks[block], reach, targets, nudges)
                scales[block] = storable_scale(rows[row, block], costs[block], scale, _ZERO, -reach, reach - _ONE)
        else:
            for block in range(peaks.size):
                scales[block] = -reach / peaks[block] if abs(peaks[block]) > TINY else _ZERO
            for block in range(peaks.size):
                scales[block] = plain_scale(rows[row, block], scales[block], reach)
            if any_coarse(scales):
                for block in range(peaks.size):
                    scales[block] = storable_scale(rows[row, block], ones, scales[block], _ZERO, -reach, reach - _ONE)
        store_scales(scales, halves)
        if means.size == 0:  # in one loop: codes in a row's buffer would halve the speed
            for block in range(peaks.size):
                out[row, block, 0] = halves[block]
                round_codes(rows[row, block], scales[block], reach, few)
                store_codes(words, fifths, out[row, block], 1)
        else:
            for block in range(peaks.size):
                round_codes(rows[row, block], scales[block], reach, quants[block])
            for block in range(peaks.size):
                steps[block] = from_half(np.int32(halves[block]))
                scales[block] = -reach * steps[block]
            top = _TWO * reach - _ONE
            balance(rows[row], quants, steps, scales, top, scratch[2], means, scratch[0], scratch[1])
            for block in range(peaks.size):
                out[row, block, 0] = halves[block]
                store_codes(quants[block].view(np.uint64), fifths, out[row, block], 1)


@kernel
def encode_bytes(rows, out):
    """Q8_0 of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 17): a half, then 32 int8 codes.

    The scale is peak / 127 as ggml's; the codes are rounded with the half that is stored, where ggml uses the
    unrounded quotient.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(rows.shape[1], np.float32)
    scales = np.empty(rows.shape[1], np.float32)
    halves = np.empty(rows.shape[1], np.uint16)
    ones = np.ones(BLOCK, np.float32)
    codes = np.empty(BLOCK, np.uint8)
    words = codes.view(np.uint64)
    reach = np.float32(127)
    for row in range(rows.shape[0]):
        find_peaks(bits[row], peaks)
        for block in range(peaks.size):
            scales[block] = abs(peaks[block]) * (_ONE / reach) if abs(peaks[block]) > TINY else _ZERO
        if any_coarse(scales):
            for block in range(peaks.size):
                scales[block] = storable_scale(rows[row, block], ones, scales[block], _ZERO, -reach, reach)
        store_scales(scales, halves)
        for block in range(peaks.size):
            out[row, block, 0] = halves[block]
            inverse = scales[block]
            for i in range(BLOCK):
                codes[i] = np.uint8(np.int32(np.rint(min(max(rows[row, block, i] * inverse, -reach), reach))) & 255)
            for i in range(4):
                store_word(words[i], out[row, block], 1 + 4 * i)
