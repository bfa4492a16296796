"""Q6_K: super-blocks of 256 weights, sixteen blocks of 16 with signed 8-bit scales and no offset.

The sixteen blocks of a super-block are worked on side by side, one per vector lane: arrays here are (element 16, block 16). Each
block's sums run in plain order, and the same on every CPU that does not fuse multiplications with additions.
"""

import numpy as np

from quantkit.kernels.halves import TINY, covering_half, from_half, near_half
from quantkit.kernels.jit import kernel

BLOCK = 16
_ZERO = np.float32(0)
_ONE = np.float32(1)
_LEAST = np.float32(-32)
_GREATEST = np.float32(31)
_TRIALS = 8
_MARGIN = np.float32(1.000001)  # a gain within rounding is none


@kernel
def transpose(x, importance, lanes, weight):
    """Lay the blocks x (16, 16) into columns; ggml's weights beside them: the importance, or x^2 without."""
    for i in range(BLOCK):
        for j in range(x.shape[0]):
            lanes[i, j] = x[j, i]
    if importance.size > 0:
        for i in range(BLOCK):
            for j in range(x.shape[0]):
                weight[i, j] = importance[j, i]
    else:
        for i in range(BLOCK):
            for j in range(x.shape[0]):
                weight[i, j] = lanes[i, j] * lanes[i, j]


@kernel
def find_peaks(lanes, peaks):
    """The weight of greatest magnitude in each block, with its sign."""
    for j in range(peaks.size):
        peak = _ZERO
        for i in range(BLOCK):
            peak = lanes[i, j] if abs(lanes[i, j]) > abs(peak) else peak
        peaks[j] = peak


@kernel
def try_scales(lanes, weight, peaks, steps, gains, scales):
    """Round each block with its peak at code -steps, fit its scale by weighted least squares, keep it where it gains."""
    for j in range(peaks.size):
        inverse = -steps / peaks[j] if abs(peaks[j]) > TINY else _ZERO
        products = squares = _ZERO
        for i in range(BLOCK):
            code = np.rint(min(max(lanes[i, j] * inverse, _LEAST), _GREATEST))
            weighted = weight[i, j] * code
            products += weighted * lanes[i, j]
            squares += weighted * code
        scale = products / squares if squares > _ZERO else _ZERO
        gain = scale * products
        better = gain > gains[j] * _MARGIN
        gains[j] = gain if better else gains[j]
        scales[j] = scale if better else scales[j]


@kernel
def common_step(scales, gains, errors):
    """The signed step that suits all scales, as a half's bits: of those that put the largest at -128 to -113, the one whose
    multiples lie nearest, weighted by what a miss costs (gain / scale^2 is the sum of
    weight * code^2)."""
    largest = _ZERO
    for j in range(16):
        largest = scales[j] if abs(scales[j]) > abs(largest) else largest
    if largest == _ZERO:
        return np.int64(0)
    for trial in range(errors.size):
        step = near_half(largest / (np.float32(trial) - np.float32(128)))
        inverse = _ONE / step
        error = _ZERO
        for j in range(16):
            miss = scales[j] - step * np.rint(scales[j] * inverse)
            miss = miss / scales[j] if scales[j] != _ZERO else _ZERO
            error += gains[j] * miss * miss
        errors[trial] = error
    best = 0
    for trial in range(errors.size):
        best = trial if errors[trial] < errors[best] else best
    chosen = largest / (np.float32(best) - np.float32(128))
    return covering_half(chosen, np.float32(128.5), abs(largest))


@kernel
def try_codes(lanes, weight, scales, step, offset, errors, codes):
    """Error that scale code rint(scale / step) + offset really leaves in each block; kept where it is the least."""
    inverse_step = _ONE / step if step != _ZERO else _ZERO
    for j in range(scales.size):
        code = min(max(np.rint(scales[j] * inverse_step) + offset, np.float32(-128)), np.float32(127))
        scale = code * step
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        error = _ZERO
        for i in range(BLOCK):
            miss = lanes[i, j] - scale * np.rint(min(max(lanes[i, j] * inverse, _LEAST), _GREATEST))
            error += weight[i, j] * miss * miss
        better = error < errors[j]
        errors[j] = error if better else errors[j]
        codes[j] = code if better else codes[j]


@kernel
def round_codes(lanes, codes, step, quants):
    """Codes + 32 of all weights under the stored scales, into uint8 quants (block, element)."""
    for j in range(codes.size):
        scale = codes[j] * step
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        for i in range(BLOCK):
            quants[j, i] = np.uint8(np.int32(np.rint(min(max(lanes[i, j] * inverse, _LEAST), _GREATEST))) + 32)


@kernel
def pack(quants, codes, step_bits, target):
    """One super-block of 210 bytes: 128 of low nibbles, 64 of upper bit pairs, 16 int8 scales, the half step."""
    flat = quants.reshape(2, 4, 32)
    for side in range(2):
        for i in range(flat.shape[2]):
            first, second, third, fourth = flat[side, 0, i], flat[side, 1, i], flat[side, 2, i], flat[side, 3, i]
            target[64 * side + i] = (first & 15) | ((third & 15) << 4)
            target[64 * side + 32 + i] = (second & 15) | ((fourth & 15) << 4)
            target[128 + 32 * side + i] = (first >> 4) | (second >> 4 << 2) | (third >> 4 << 4) | (fourth >> 4 << 6)
    for j in range(16):
        target[192 + j] = np.uint8(np.int32(codes[j]) & 255)
    target[208] = step_bits & 255
    target[209] = step_bits >> 8


@kernel
def encode(rows, importance, out):
    """Q6_K bytes of float32 rows (n, super-blocks, 16, 16) into uint8 out (n, super-blocks, 210).

    importance: (super-blocks, 16, 16), or of size 0. Minimises sum of w * (x - scale * code)^2 with ggml's own w (the importance,
    or x^2). Eight steps around 32 are tried for each block, solved in closed form; then, the common half step being known, the
    scale code of the least error among three. ggml's make_qx_quants (MIT) tries nineteen and rounds the scales on their own.
    """
    lanes = np.empty((BLOCK, 16), np.float32)
    weight = np.empty((BLOCK, 16), np.float32)
    peaks = np.empty(16, np.float32)
    gains = np.empty(16, np.float32)
    scales = np.empty(16, np.float32)
    errors = np.empty(16, np.float32)
    codes = np.empty(16, np.float32)
    quants = np.empty((16, BLOCK), np.uint8)
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            transpose(rows[row, block], importance[block] if importance.size > 0 else importance[0:0, 0], lanes, weight)
            find_peaks(lanes, peaks)
            gains[:] = _ZERO
            scales[:] = _ZERO
            for trial in range(_TRIALS):
                steps = np.float32(32) + np.float32(0.25) * np.float32((trial + 1) // 2 if trial % 2 else -(trial // 2))
                try_scales(lanes, weight, peaks, steps, gains, scales)
            step_bits = common_step(scales, gains, errors)
            step = from_half(step_bits)
            gains[:] = np.float32(np.inf)
            codes[:] = _ZERO
            for offset in range(-1, 2):
                try_codes(lanes, weight, scales, step, np.float32(offset), gains, codes)
            round_codes(lanes, codes, step, quants)
            pack(quants, codes, step_bits, out[row, block])
