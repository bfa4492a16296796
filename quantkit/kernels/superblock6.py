"""Q6_K: super-blocks of 256 weights, sixteen blocks of 16 with signed 8-bit scales and no offset.

The sixteen blocks of a super-block are worked on side by side, one per vector lane: element i of block j lies at 16
* i + j. Each block's sums run in plain order, and the same on every CPU that does not fuse multiplications with
additions.
"""

import numpy as np

from quantkit.kernels.halves import TINY, covering_half, from_half, near_half
from quantkit.kernels.jit import kernel

BLOCK = 16
_ZERO = np.float32(0)
_ONE = np.float32(1)
_LEAST = np.float32(-32)
_GREATEST = np.float32(31)
_TRIALS = 15
_MARGIN = np.float32(1e-8)  # of the energy: errors that differ by less are equal


@kernel
def transpose(x, lanes):
    """Lay the sixteen blocks of x (256,) side by side."""
    for j in range(16):
        for i in range(BLOCK):
            lanes[16 * i + j] = x[16 * j + i]


@kernel
def square(lanes, weight):
    """ggml's weights without importance: x^2."""
    for i in range(lanes.size):
        weight[i] = lanes[i] * lanes[i]


@kernel
def find_peaks(lanes, weight, peaks, energies):
    """The weight of greatest magnitude in each block, with its sign, and the block's sum of weight * x^2."""
    for j in range(16):
        peak = energy = _ZERO
        for i in range(BLOCK):
            peak = lanes[16 * i + j] if abs(lanes[16 * i + j]) > abs(peak) else peak
            energy += weight[16 * i + j] * lanes[16 * i + j] * lanes[16 * i + j]
        peaks[j] = peak
        energies[j] = energy


@kernel
def round_lanes(lanes, plain, codes):
    """Codes of each block under its `plain` scale, into float32 codes (256,)."""
    for j in range(16):
        inverse = _ONE / plain[j] if abs(plain[j]) > TINY else _ZERO
        for i in range(BLOCK):
            codes[16 * i + j] = np.rint(min(max(lanes[16 * i + j] * inverse, _LEAST), _GREATEST))


@kernel
def try_scales(lanes, weight, codes, plain, errors, scales):
    """Fit each block's scale to its codes by weighted least squares; keep it where the error is less.

    The fit corrects the `plain` scale of the rounding, so that the error is a sum of small terms: beside an outlier,
    whose x^4 fills a float32, the difference of large ones would be noise.
    """
    for j in range(16):
        missed = products = squares = _ZERO
        for i in range(BLOCK):
            miss = lanes[16 * i + j] - plain[j] * codes[16 * i + j]
            weighted = weight[16 * i + j] * codes[16 * i + j]
            missed += weight[16 * i + j] * miss * miss
            products += weighted * miss
            squares += weighted * codes[16 * i + j]
        change = products / squares if squares > _ZERO else _ZERO
        error = missed - change * products + _MARGIN * plain[j] * plain[j] * squares
        better = error < errors[j]
        errors[j] = error if better else errors[j]
        scales[j] = plain[j] + change if better else scales[j]


@kernel
def common_step(scales, energies, errors):
    """The signed step that suits all scales, as a half's bits: of those that put the largest at -128 to -113, the
    one whose multiples lie nearest, weighted by what a relative miss costs, the block's energy.
    """
    largest = _ZERO
    for j in range(16):
        largest = scales[j] if abs(scales[j]) > abs(largest) else largest
    if abs(largest) < TINY:
        return np.int32(0)
    for trial in range(16):
        step = near_half(largest / (np.float32(trial) - np.float32(128)))
        inverse = _ONE / step
        error = _ZERO
        for j in range(16):
            scale = scales[j] if abs(scales[j]) > TINY else largest
            miss = _ONE - step * np.rint(scale * inverse) / scale
            error += energies[j] * miss * miss
        errors[trial] = error
    best = 0
    for trial in range(16):
        best = trial if errors[trial] < errors[best] else best
    return covering_half(largest / (np.float32(best) - np.float32(128)), np.float32(128.5), abs(largest))


@kernel
def try_codes(lanes, weight, scales, step, offset, errors, codes):
    """Error that scale code rint(scale / step) + offset really leaves in each block; kept where it is the least."""
    inverse_step = _ONE / step if step != _ZERO else _ZERO
    for j in range(16):
        code = min(max(np.rint(scales[j] * inverse_step) + offset, np.float32(-128)), np.float32(127))
        scale = code * step
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        error = _ZERO
        for i in range(BLOCK):
            miss = lanes[16 * i + j] - scale * np.rint(min(max(lanes[16 * i + j] * inverse, _LEAST), _GREATEST))
            error += weight[16 * i + j] * miss * miss
        better = error < errors[j]
        errors[j] = error if better else errors[j]
        codes[j] = code if better else codes[j]


@kernel
def order_codes(codes, quants):
    """Codes in lane order, + 32, to uint8 quants (256,) in the weights' own order."""
    for j in range(16):
        for i in range(BLOCK):
            quants[16 * j + i] = np.uint8(np.int32(codes[16 * i + j]) + 32)


@kernel
def pack(quants, codes, step_bits, target):
    """One super-block of 210 bytes: 128 of low nibbles, 64 of upper bit pairs, 16 int8 scales, the half step."""
    flat = quants.reshape(2, 4, 32)
    for side in range(2):
        for i in range(32):
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
    """Q6_K bytes of float32 rows (n, super-blocks, 256) into uint8 out (n, super-blocks, 210).

    importance: (super-blocks, 256) in lane order, or of size 0. Minimises sum of w * (x - scale * code)^2 with
    ggml's own w (the importance, or x^2). Fifteen steps from 32.9 down to 30.1 are tried for each block, solved in
    closed form; then, the common half step being known, the scale code of the least error among three. ggml's
    make_qx_quants (MIT) tries nineteen and rounds the scales on their own.
    """
    lanes = np.empty(256, np.float32)
    squares = np.empty(256, np.float32)
    rounded = np.empty(256, np.float32)
    peaks = np.empty(16, np.float32)
    plain = np.empty(16, np.float32)
    energies = np.empty(16, np.float32)
    errors = np.empty(16, np.float32)
    scales = np.empty(16, np.float32)
    codes = np.empty(16, np.float32)
    quants = np.empty(256, np.uint8)
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            transpose(x, lanes)
            if importance.size == 0:
                square(lanes, squares)
            weight = importance[block] if importance.size > 0 else squares
            find_peaks(lanes, weight, peaks, energies)
            errors[:] = np.float32(np.inf)
            scales[:] = _ZERO
            for trial in range(_TRIALS):
                steps = np.float32(32.9) - np.float32(0.2) * np.float32(trial)
                for j in range(16):
                    plain[j] = peaks[j] / -steps
                round_lanes(lanes, plain, rounded)
                try_scales(lanes, weight, rounded, plain, errors, scales)
            step_bits = common_step(scales, energies, errors)
            step = from_half(step_bits)
            errors[:] = np.float32(np.inf)
            codes[:] = _ZERO
            for offset in range(-1, 2):
                try_codes(lanes, weight, scales, step, np.float32(offset), errors, codes)
            for j in range(16):
                plain[j] = codes[j] * step
            round_lanes(lanes, plain, rounded)
            order_codes(rounded, quants)
            pack(quants, codes, step_bits, out[row, block])
