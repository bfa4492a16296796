"""Q2_K: super-blocks of 256 weights, sixteen blocks of 16 with 4-bit scales and minima: x ~ d * scale * code - dmin * minimum.

The sixteen blocks are worked on side by side, one per vector lane: element i of block j lies at 16 * i + j.
"""

import numpy as np

from quantkit.kernels.balance import balance, fill_worths
from quantkit.kernels.halves import TINY, covering_half, from_half, near_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.superblock6 import BLOCK, total, transpose

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_TOP = np.float32(3)  # greatest code
_MOST = np.float32(15)  # greatest scale and minimum code
_FLAT = np.float32(1e-6)  # a variance below this part of the squares is rounding: all codes are one


@kernel
def weigh_alone(lanes, weight):
    """Fill `weight` as ggml does without importance: |x|."""
    for i in range(lanes.size):
        weight[i] = abs(lanes[i])


@kernel
def survey(lanes, weight, lows, highs, weights, values):
    """Least (at most 0) and greatest of each block, its weights and its weighted values, summed."""
    for j in range(16):
        low = high = lanes[j]
        sum_weights = sum_values = _ZERO
        for i in range(BLOCK):
            x = lanes[16 * i + j]
            low = min(low, x)
            high = max(high, x)
            sum_weights += weight[16 * i + j]
            sum_values += weight[16 * i + j] * x
        lows[j] = min(low, _ZERO)
        highs[j] = high
        weights[j] = sum_weights
        values[j] = sum_values


@kernel
def try_fit(lanes, weight, inverses, bases, weights, values, gains, scales, minima):
    """Codes rint((x - base) * inverse) of every block, solved for scale and minimum >= 0 by weighted least squares; kept
    where more of the squares is explained.
    """
    for j in range(16):
        codes = squares = products = _ZERO
        for i in range(BLOCK):
            x = lanes[16 * i + j]
            code = np.rint(min(max((x - bases[j]) * inverses[j], _ZERO), _TOP))
            weighted = weight[16 * i + j] * code
            codes += weighted
            squares += weighted * code
            products += weighted * x
        mean_code = codes / weights[j]
        variance = squares - codes * mean_code
        scale = (products - values[j] * mean_code) / variance
        offset = (values[j] - scale * codes) / weights[j]
        bound = offset > _ZERO
        scale = products / squares if bound else scale
        offset = _ZERO if bound else offset
        gain = scale * (_TWO * (products - offset * codes) - scale * squares) + offset * (
            _TWO * values[j] - offset * weights[j]
        )
        better = (variance > _FLAT * squares) & (scale > _ZERO) & (gain > gains[j])
        gains[j] = gain if better else gains[j]
        scales[j] = scale if better else scales[j]
        minima[j] = -offset if better else minima[j]


@kernel
def common_step(values, weights):
    """The step whose multiples 0..15 lie nearest the sixteen `values` >= 0, weighted, and their peak; 16 are tried, those
    that put the peak at 15 to 9.4.
    """
    peak = _ZERO
    for j in range(16):
        peak = max(peak, values[j])
    if not peak > TINY:
        return _ZERO, _ZERO
    best = np.float32(np.inf)
    chosen = peak / _MOST
    for trial in range(16):
        step = near_half(peak / (_MOST - np.float32(0.375) * np.float32(trial)))
        inverse = _ONE / step
        error = _ZERO
        for j in range(16):
            miss = values[j] - step * min(np.rint(values[j] * inverse), _MOST)
            error += weights[j] * miss * miss
        if error < best:
            best = error
            chosen = step
    return chosen, peak


@kernel
def try_codes(lanes, weight, weights, trial, minima, step, minimum_step, errors, codes, minimum_codes):
    """The scale codes `trial` (16,) with the minimum codes that suit the errors they leave; kept where the error is the
    least.
    """
    inverse_minimum = _ONE / minimum_step if minimum_step > _ZERO else _ZERO
    for j in range(16):
        code = min(max(trial[j], _ZERO), _MOST)
        scale = code * step
        inverse = _ONE / scale if scale > _ZERO else _ZERO
        first = min(np.rint(minima[j] * inverse_minimum), _MOST)
        base = first * minimum_step
        missed = squares = _ZERO
        for i in range(BLOCK):
            y = lanes[16 * i + j] + base
            miss = y - scale * np.rint(min(max(y * inverse, _ZERO), _TOP))
            missed += weight[16 * i + j] * miss
            squares += weight[16 * i + j] * miss * miss
        mean = missed / weights[j] if weights[j] > _ZERO else _ZERO
        minimum_code = min(max(np.rint((base - mean) * inverse_minimum), _ZERO), _MOST)
        moved = minimum_code * minimum_step
        error = _ZERO
        for i in range(BLOCK):
            y = lanes[16 * i + j] + moved
            miss = y - scale * np.rint(min(max(y * inverse, _ZERO), _TOP))
            error += weight[16 * i + j] * miss * miss
        stay = squares < error
        error = squares if stay else error
        better = error < errors[j]
        errors[j] = error if better else errors[j]
        codes[j] = code if better else codes[j]
        minimum_codes[j] = (first if stay else minimum_code) if better else minimum_codes[j]


@kernel
def choose_codes(lanes, weight, weights, scales, minima, step, minimum_step, trial, errors, codes, minimum_codes):
    """The best of four scale codes around scale / step, each with its minimum code, for every block, by the error left."""
    inverse = _ONE / step if step > _ZERO else _ZERO
    errors[:] = np.float32(np.inf)
    for offset in range(-1, 3):
        for j in range(16):
            trial[j] = np.rint(scales[j] * inverse) + np.float32(offset)
        try_codes(lanes, weight, weights, trial, minima, step, minimum_step, errors, codes, minimum_codes)


@kernel
def try_all_codes(lanes, weight, weights, minima, step, minimum_step, trial, errors, codes, minimum_codes):
    """Every scale code, where one leaves less error than those chosen: scales far apart share one step of four bits."""
    for code in range(16):
        trial[:] = np.float32(code)
        try_codes(lanes, weight, weights, trial, minima, step, minimum_step, errors, codes, minimum_codes)


@kernel
def fitted_steps(lanes, weight, step, minimum_step, codes, minimum_codes):
    """Step and minimum step that suit the stored codes of all blocks, by weighted least squares."""
    aa = ab = bb = ax = bx = _ZERO
    for j in range(16):
        scale = codes[j] * step
        inverse = _ONE / scale if scale > _ZERO else _ZERO
        base = minimum_codes[j] * minimum_step
        quants = squares = products = weights = values = _ZERO
        for i in range(BLOCK):
            x = lanes[16 * i + j]
            quant = np.rint(min(max((x + base) * inverse, _ZERO), _TOP))
            weighted = weight[16 * i + j] * quant
            quants += weighted
            squares += weighted * quant
            products += weighted * x
            weights += weight[16 * i + j]
            values += weight[16 * i + j] * x
        aa += codes[j] * codes[j] * squares
        ab -= codes[j] * minimum_codes[j] * quants
        bb += minimum_codes[j] * minimum_codes[j] * weights
        ax += codes[j] * products
        bx -= minimum_codes[j] * values
    determinant = aa * bb - ab * ab
    if not determinant > _FLAT * aa * bb:
        return (ax / aa if aa > _ZERO else step), minimum_step
    return (ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant


@kernel
def round_lanes(lanes, steps, offsets, quants):
    """Nearest codes of each block under x ~ step * code + offset, into uint8 quants (256,) in the weights' own order."""
    for j in range(16):
        inverse = _ONE / steps[j] if steps[j] > _ZERO else _ZERO
        for i in range(BLOCK):
            quants[16 * j + i] = np.uint8(np.int32(np.rint(min(max((lanes[16 * i + j] - offsets[j]) * inverse, _ZERO), _TOP))))


@kernel
def pack_quants(quants, target):
    """Codes (256,) of two bits as 64 bytes: four to a byte, 32 apart."""
    flat = quants.reshape(8, 32)
    for side in range(2):
        for i in range(32):
            pairs = flat[4 * side, i]
            for part in range(1, 4):
                pairs |= flat[4 * side + part, i] << (2 * part)
            target[32 * side + i] = pairs


@kernel
def pack(quants, codes, minimum_codes, step_bits, minimum_bits, target):
    """One super-block of 84 bytes: 16 of scale and minimum nibbles, 64 of bit pairs, the halves d and dmin."""
    for j in range(16):
        target[j] = np.uint8(np.int32(codes[j]) | (np.int32(minimum_codes[j]) << 4))
    pack_quants(quants, target[16:80])
    target[80] = step_bits & 255
    target[81] = step_bits >> 8
    target[82] = minimum_bits & 255
    target[83] = minimum_bits >> 8


@kernel
def encode(rows, costs, in_lanes, means, trials, phases, out):
    """Q2_K bytes of float32 rows (n, super-blocks, 256) into uint8 out (n, super-blocks, 84).

    costs, means: (super-blocks, 256), or of size 0; in_lanes: the costs in lane order; without costs ggml's weights. `trials`
    steps at `phases` starts are solved for each block in closed form; the scales and minima then get common steps, codes by the
    error that they really leave, and the steps a refit to the codes, taken while the error falls; with means, codes are
    balanced. ggml (make_qkx3_quants and make_qp_quants, MIT) tries 37 steps at one start and rounds scales and minima on
    their own.
    """
    lanes, alone = np.empty(256, np.float32), np.empty(256, np.float32)
    lows, highs = np.empty(16, np.float32), np.empty(16, np.float32)
    weights, values = np.empty(16, np.float32), np.empty(16, np.float32)
    gains, scales, minima = np.empty(16, np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
    inverses, bases, errors = np.empty(16, np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
    codes, minimum_codes = np.empty(16, np.float32), np.empty(16, np.float32)
    other, minimum_other = np.empty(16, np.float32), np.empty(16, np.float32)
    trial, kept_scale, kept_minimum = np.empty(16, np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
    blocks = rows.shape[1]
    quants = np.empty((blocks, 256), np.uint8)
    steps = np.empty((blocks, 16), np.float32)
    offsets = np.empty((blocks, 16), np.float32)
    scratch = np.empty((3, 16 * means.shape[0], BLOCK), np.float32)
    if means.size > 0:
        fill_worths(costs.reshape(16 * blocks, BLOCK), means.reshape(16 * blocks, BLOCK), scratch[2])
    for row in range(rows.shape[0]):
        for block in range(blocks):
            transpose(rows[row, block], lanes)
            if costs.size == 0:
                weigh_alone(lanes, alone)
            weight = in_lanes[block] if costs.size > 0 else alone
            survey(lanes, weight, lows, highs, weights, values)
            gains[:] = _ZERO
            for j in range(16):
                scales[j] = (highs[j] - lows[j]) / _TOP  # where all codes are one, no fit is better
                minima[j] = -lows[j]
                weights[j] = weights[j] if weights[j] > _ZERO else _ONE
            for phase in range(phases):
                for attempt in range(trials):
                    size = np.float32(1.6) + np.float32(2.2) * np.float32(attempt) / np.float32(trials - 1)
                    for j in range(16):
                        spread = highs[j] - lows[j]
                        bases[j] = min(lows[j] + np.float32(phase) / np.float32(phases) * spread / _TOP, _ZERO)
                        inverses[j] = size / spread if spread > TINY else _ZERO
                    try_fit(lanes, weight, inverses, bases, weights, values, gains, scales, minima)
            for _ in range(2):
                for j in range(16):
                    bases[j] = -minima[j]
                    inverses[j] = _ONE / scales[j] if scales[j] > TINY else _ZERO
                try_fit(lanes, weight, inverses, bases, weights, values, gains, scales, minima)
            step, peak = common_step(scales, weights)
            step_bits = covering_half(step, np.float32(15.5), peak)
            minimum_step, peak = common_step(minima, weights)
            minimum_bits = covering_half(minimum_step, np.float32(15.5), peak)
            step, minimum_step = from_half(step_bits), from_half(minimum_bits)
            choose_codes(lanes, weight, weights, scales, minima, step, minimum_step, trial, errors, codes, minimum_codes)
            if costs.size > 0:
                try_all_codes(lanes, weight, weights, minima, step, minimum_step, trial, errors, codes, minimum_codes)
            best = total(errors)
            for _ in range(2):
                step, minimum_step = fitted_steps(
                    lanes, weight, from_half(step_bits), from_half(minimum_bits), codes, minimum_codes
                )
                tried, minimum_tried = to_half(max(step, _ZERO)), to_half(max(minimum_step, _ZERO))
                step, minimum_step = from_half(tried), from_half(minimum_tried)
                for j in range(16):
                    kept_scale[j] = codes[j] * step
                    kept_minimum[j] = minimum_codes[j] * minimum_step
                choose_codes(
                    lanes, weight, weights, kept_scale, kept_minimum, step, minimum_step, trial, errors, other, minimum_other
                )
                found = total(errors)
                if not found < best:
                    break
                best, step_bits, minimum_bits = found, tried, minimum_tried
                codes[:] = other
                minimum_codes[:] = minimum_other
            for j in range(16):
                steps[block, j] = codes[j] * from_half(step_bits)
                offsets[block, j] = -minimum_codes[j] * from_half(minimum_bits)
            round_lanes(lanes, steps[block], offsets[block], quants[block])
            pack(quants[block], codes, minimum_codes, step_bits, minimum_bits, out[row, block])
        if means.size > 0:
            x, flat = rows[row].reshape(16 * blocks, BLOCK), quants.reshape(16 * blocks, BLOCK)
            flat_means = means.reshape(16 * blocks, BLOCK)
            flat_steps, flat_offsets = steps.reshape(16 * blocks), offsets.reshape(16 * blocks)
            balance(x, flat, flat_steps, flat_offsets, _TOP, scratch[2], flat_means, scratch[0], scratch[1])
            for block in range(blocks):
                pack_quants(quants[block], out[row, block, 16:80])
