"""Q3_K and Q6_K: super-blocks of 256 weights, sixteen blocks of 16 with signed scales of 6 or 8 bits and no offset.

The sixteen blocks of a super-block are worked on side by side, one per vector lane: element i of block j lies at 16
* i + j. Each block's sums run in plain order, and the same on every CPU that does not fuse multiplications with
additions.
"""

import numpy as np

from quantkit.kernels.balance import balance, fill_worths
from quantkit.kernels.halves import TINY, covering_half, from_half, near_half, to_half
from quantkit.kernels.jit import kernel

BLOCK = 16
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
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
def round_lanes(lanes, plain, reach, codes):
    """Codes within -reach..reach - 1 of each block under its `plain` scale, into float32 codes (256,)."""
    for j in range(16):
        inverse = _ONE / plain[j] if abs(plain[j]) > TINY else _ZERO
        for i in range(BLOCK):
            codes[16 * i + j] = np.rint(min(max(lanes[16 * i + j] * inverse, -reach), reach - _ONE))


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
def common_step(scales, energies, reach, errors):
    """The signed step that suits all scales, as a half's bits: of those that put the largest at -reach and the fifteen
    codes above it, the one whose multiples lie nearest, weighted by what a relative miss costs, the block's energy.
    """
    largest = _ZERO
    for j in range(16):
        largest = scales[j] if abs(scales[j]) > abs(largest) else largest
    if abs(largest) < TINY:
        return np.int32(0)
    for trial in range(16):
        step = near_half(largest / (np.float32(trial) - reach))
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
    return covering_half(largest / (np.float32(best) - reach), reach + np.float32(0.5), abs(largest))


@kernel
def try_codes(lanes, weight, scales, step, offset, scale_reach, reach, errors, codes):
    """Error that scale code rint(scale / step) + offset really leaves in each block; kept where it is the least."""
    inverse_step = _ONE / step if step != _ZERO else _ZERO
    for j in range(16):
        code = min(max(np.rint(scales[j] * inverse_step) + offset, -scale_reach), scale_reach - _ONE)
        scale = code * step
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        error = _ZERO
        for i in range(BLOCK):
            miss = lanes[16 * i + j] - scale * np.rint(min(max(lanes[16 * i + j] * inverse, -reach), reach - _ONE))
            error += weight[16 * i + j] * miss * miss
        better = error < errors[j]
        errors[j] = error if better else errors[j]
        codes[j] = code if better else codes[j]


@kernel
def choose_codes(lanes, weight, scales, step, scale_reach, reach, errors, codes):
    """The best of three scale codes for every block, by the error that they leave."""
    errors[:] = np.float32(np.inf)
    codes[:] = _ZERO
    for offset in range(-1, 2):
        try_codes(lanes, weight, scales, step, np.float32(offset), scale_reach, reach, errors, codes)


@kernel
def fitted_step(lanes, weight, rounded, codes):
    """The step that suits the stored codes of all blocks, by weighted least squares; 0 where there is none."""
    products = squares = _ZERO
    for j in range(16):
        product = square = _ZERO
        for i in range(BLOCK):
            weighted = weight[16 * i + j] * rounded[16 * i + j]
            product += weighted * lanes[16 * i + j]
            square += weighted * rounded[16 * i + j]
        products += codes[j] * product
        squares += codes[j] * codes[j] * square
    return products / squares if squares > _ZERO else _ZERO


@kernel
def total(errors):
    found = _ZERO
    for j in range(16):
        found += errors[j]
    return found


@kernel
def order_codes(codes, reach, quants):
    """Codes in lane order, + reach, to uint8 quants (256,) in the weights' own order."""
    for j in range(16):
        for i in range(BLOCK):
            quants[16 * j + i] = np.uint8(np.int32(codes[16 * i + j]) + np.int32(reach))


@kernel
def pack6(quants, codes, step_bits, target):
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
def pack3(quants, codes, step_bits, target):
    """One super-block of 110 bytes: 32 of third bits, 64 of low bit pairs, 12 of 6-bit scales + 32, the half step."""
    flat = quants.reshape(8, 32)
    for i in range(32):
        thirds = flat[0, i] >> 2
        for part in range(1, 8):
            thirds |= (flat[part, i] >> 2) << part
        target[i] = thirds
        for side in range(2):
            low = flat[4 * side, i] & 3
            for part in range(1, 4):
                low |= (flat[4 * side + part, i] & 3) << (2 * part)
            target[32 + 32 * side + i] = low
    for j in range(12):
        target[96 + j] = 0
    for j in range(16):
        code = np.uint8(np.int32(codes[j]) + 32)
        target[96 + j % 8] |= (code & 15) << (4 * (j // 8))
        target[104 + j % 4] |= (code >> 4) << (2 * (j // 4))
    target[108] = step_bits & 255
    target[109] = step_bits >> 8


@kernel
def encode(rows, costs, in_lanes, means, reach, scale_reach, first, between, trials, out):
    """Q6_K (reach 32, scale_reach 128) or Q3_K (4, 32) bytes of float32 rows (n, super-blocks, 256) into uint8 out (n,
    super-blocks, 210 or 110).

    costs, means: (super-blocks, 256) or of size 0; in_lanes: the costs in lane order. Minimises sum of w * (x - scale *
    code)^2 with w the costs, or x^2 as ggml has it. `trials` steps over the peak, from `first` down by `between`, with the
    peak at the negative end and, for few codes with costs, at the positive one, are solved in closed form for each block;
    then, the common half step being known, the scale code of the least error among three; for few codes with costs step and
    scale codes are refitted to the stored codes. With means, codes are balanced. ggml's make_qx_quants and make_q3_quants
    (MIT) try nineteen steps, and round the scales on their own.
    """
    lanes = np.empty(256, np.float32)
    squares = np.empty(256, np.float32)
    rounded = np.empty(256, np.float32)
    peaks = np.empty(16, np.float32)
    plain = np.empty(16, np.float32)
    energies = np.empty(16, np.float32)
    errors = np.empty(16, np.float32)
    scales = np.empty(16, np.float32)
    again = np.empty(16, np.float32)
    blocks = rows.shape[1]
    codes = np.empty((blocks, 16), np.float32)
    halves = np.empty(blocks, np.int32)
    quants = np.empty((blocks, 256), np.uint8)
    steps = np.empty((blocks, 16), np.float32)
    offsets = np.empty((blocks, 16), np.float32)
    scratch = np.empty((3, 16 * means.shape[0], BLOCK), np.float32)
    if means.size > 0:
        fill_worths(costs.reshape(16 * blocks, BLOCK), means.reshape(16 * blocks, BLOCK), scratch[2])
    few = reach < np.float32(8)
    thorough = few and costs.size > 0
    for row in range(rows.shape[0]):
        for block in range(blocks):
            transpose(rows[row, block], lanes)
            if costs.size == 0:
                square(lanes, squares)
            weight = in_lanes[block] if costs.size > 0 else squares
            find_peaks(lanes, weight, peaks, energies)
            errors[:] = np.float32(np.inf)
            scales[:] = _ZERO
            for trial in range(trials):
                size = first - between * np.float32(trial)
                for j in range(16):
                    plain[j] = peaks[j] / -size
                round_lanes(lanes, plain, reach, rounded)
                try_scales(lanes, weight, rounded, plain, errors, scales)
                if thorough:
                    for j in range(16):
                        plain[j] = peaks[j] / (size - _ONE)
                    round_lanes(lanes, plain, reach, rounded)
                    try_scales(lanes, weight, rounded, plain, errors, scales)
            if thorough:
                for _ in range(2):
                    plain[:] = scales
                    round_lanes(lanes, plain, reach, rounded)
                    try_scales(lanes, weight, rounded, plain, errors, scales)
            step_bits = common_step(scales, energies, scale_reach, errors)
            chosen = codes[block]
            choose_codes(lanes, weight, scales, from_half(step_bits), scale_reach, reach, errors, chosen)
            best = total(errors)
            for _ in range(2 if thorough else 0):
                for j in range(16):
                    plain[j] = chosen[j] * from_half(step_bits)
                round_lanes(lanes, plain, reach, rounded)
                tried = to_half(fitted_step(lanes, weight, rounded, chosen))
                choose_codes(lanes, weight, scales, from_half(tried), scale_reach, reach, errors, again)
                if not total(errors) < best:
                    break
                best = total(errors)
                step_bits = tried
                chosen[:] = again
            halves[block] = step_bits
            for j in range(16):
                plain[j] = chosen[j] * from_half(step_bits)
                steps[block, j] = plain[j]
                offsets[block, j] = -reach * plain[j]
            round_lanes(lanes, plain, reach, rounded)
            order_codes(rounded, reach, quants[block])
        if means.size > 0:
            x, flat = rows[row].reshape(16 * blocks, BLOCK), quants.reshape(16 * blocks, BLOCK)
            flat_means = means.reshape(16 * blocks, BLOCK)
            flat_steps, flat_offsets = steps.reshape(16 * blocks), offsets.reshape(16 * blocks)
            top = _TWO * reach - _ONE
            balance(x, flat, flat_steps, flat_offsets, top, scratch[2], flat_means, scratch[0], scratch[1])
        for block in range(blocks):
            if few:
                pack3(quants[block], codes[block], halves[block], out[row, block])
            else:
                pack6(quants[block], codes[block], halves[block], out[row, block])
