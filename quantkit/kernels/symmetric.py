"""Q4_0, Q5_0 and Q8_0: blocks of 32 weights with one half-precision scale, x ~ scale * code."""

import numpy as np

from quantkit.kernels.affine import BLOCK, any_coarse, storable_scale
from quantkit.kernels.feedback import lean, miss
from quantkit.kernels.halves import TINY, from_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.packing import store_codes, store_word

_ZERO = np.float32(0)
_ONE = np.float32(1)
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
def weighted_scale(x, weight, peak, reach, steps, nudges):
    """The scale of least weighted error among those that put the peak at the codes `steps`, and `nudges` times the best
    of these; the winner is settled once.

    Where weights differ by orders of magnitude the best scale may cut off a peak that hardly any input meets, and the side
    of the codes that has one more may serve either sign. On a constant block all scales fit alike: the first wins ties.
    """
    best = scale = step = _ZERO
    if abs(peak) < TINY:
        return scale
    for trial in range(steps.size):
        products, squares = weighted_sums(x, weight, steps[trial] / peak, reach)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
        step = steps[trial] if better else step
    for trial in range(nudges.size):
        products, squares = weighted_sums(x, weight, step * nudges[trial] / peak, reach)
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
def encode(rows, importance, means, gains, reach, steps, nudges, out):
    """Q4_0 (reach 8) or Q5_0 (reach 16) of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 9 or 11).

    importance: (blocks, 32), or of size 0. Without it the scale that puts the peak at -reach, as ggml's, is refitted
    by least squares to the codes it gives: the squared error falls. With it, `weighted_scale` minimises sum of importance *
    error^2, the diagonal's part of the output's error; ggml's make_qx_quants (MIT) weighs by importance * sqrt(mean x^2 +
    x^2), keeps the peak within 0.9 of -reach and settles nothing. means, gains: (blocks, 32) for `feedback`, or of size 0.
    steps, nudges: of `weighted_scale`.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(rows.shape[1], np.float32)
    scales = np.empty(rows.shape[1], np.float32)
    halves = np.empty(rows.shape[1], np.uint16)
    ones = np.ones(BLOCK, np.float32)
    leaning = np.empty(BLOCK, np.float32)
    quants = np.empty(BLOCK, np.uint8)
    words = quants.view(np.uint64)
    fifths = out.shape[2] > 9
    for row in range(rows.shape[0]):
        find_peaks(bits[row], peaks)
        if importance.size > 0:
            for block in range(peaks.size):
                x = rows[row, block]
                scale = weighted_scale(x, importance[block], peaks[block], reach, steps, nudges)
                scales[block] = storable_scale(x, importance[block], scale, _ZERO, -reach, reach - _ONE)
        else:
            for block in range(peaks.size):
                scales[block] = -reach / peaks[block] if abs(peaks[block]) > TINY else _ZERO
            for block in range(peaks.size):
                scales[block] = plain_scale(rows[row, block], scales[block], reach)
            if any_coarse(scales):
                for block in range(peaks.size):
                    scales[block] = storable_scale(rows[row, block], ones, scales[block], _ZERO, -reach, reach - _ONE)
        store_scales(scales, halves)
        owed = _ZERO
        for block in range(peaks.size):
            out[row, block, 0] = halves[block]
            if means.size > 0:
                scale = from_half(np.int32(halves[block]))
                lean(rows[row, block], owed, gains[block], scale, leaning)
                round_codes(leaning, scales[block], reach, quants)
                owed += miss(rows[row, block], means[block], scale, -reach * scale, quants)
            else:
                round_codes(rows[row, block], scales[block], reach, quants)
            store_codes(words, fifths, out[row, block], 1)


@kernel
def round_bytes(x, inverse, codes):
    """Codes within -127..127 of 32 weights as the bytes of int8s."""
    reach = np.float32(127)
    for i in range(BLOCK):
        codes[i] = np.uint8(np.int32(np.rint(min(max(x[i] * inverse, -reach), reach))) & 255)


@kernel
def encode_bytes(rows, means, gains, out):
    """Q8_0 of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 17): a half, then 32 int8 codes.

    The scale is peak / 127 as ggml's; the codes are rounded with the half that is stored, where ggml uses the
    unrounded quotient, and with `feedback` where means and gains (blocks, 32) are not of size 0.
    """
    bits = rows.view(np.int32)
    peaks = np.empty(rows.shape[1], np.float32)
    scales = np.empty(rows.shape[1], np.float32)
    halves = np.empty(rows.shape[1], np.uint16)
    ones = np.ones(BLOCK, np.float32)
    leaning = np.empty(BLOCK, np.float32)
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
        owed = _ZERO
        for block in range(peaks.size):
            out[row, block, 0] = halves[block]
            if means.size > 0:
                scale = from_half(np.int32(halves[block]))
                lean(rows[row, block], owed, gains[block], scale, leaning)
                round_bytes(leaning, scales[block], codes)
                owed += miss(rows[row, block], means[block], scale, _ZERO, codes.view(np.int8))
            else:
                round_bytes(rows[row, block], scales[block], codes)
            for i in range(4):
                store_word(words[i], out[row, block], 1 + 4 * i)
