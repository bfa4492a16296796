"""Q4_K and Q5_K: super-blocks of 256 weights, eight blocks of 32 with 6-bit scales and minima."""

import numpy as np

from quantkit.kernels.affine import BLOCK, extremes, search, weight_sums
from quantkit.kernels.balance import balance, fill_worths
from quantkit.kernels.halves import TINY, covering_half, from_half, near_half
from quantkit.kernels.jit import kernel

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_TOP = np.float32(63)  # greatest 6-bit code


@kernel
def weigh_alone(x, weight):
    """Fill `weight` (8, 32) as ggml does without importance: the block's root mean square + |x|."""
    for j in range(8):
        total = _ZERO
        for i in range(x.shape[1]):
            total += x[j, i] * x[j, i]
        rms = np.sqrt(total * np.float32(1 / BLOCK))
        for i in range(x.shape[1]):
            weight[j, i] = rms + abs(x[j, i])


@kernel
def common_step(values, weights):
    """The step whose multiples 0..63 lie nearest the eight `values` >= 0, weighted; 16 tried, those that put the
    peak at 63 to 55.5.
    """
    peak = _ZERO
    for j in range(values.size):
        peak = max(peak, values[j])
    if not peak > TINY:
        return _ZERO, _ZERO
    best = np.float32(np.inf)
    chosen = peak / _TOP
    for trial in range(16):
        step = near_half(peak / (_TOP - np.float32(0.5) * np.float32(trial)))
        inverse = _ONE / step
        error = _ZERO
        for j in range(values.size):
            miss = values[j] - step * np.rint(values[j] * inverse)
            error += weights[j] * miss * miss
        if error < best:
            best = error
            chosen = step
    return chosen, peak


@kernel
def residual_sums(x, weight, minimum, scale, top):
    """Weighted sums of e and e^2, for e = x + minimum - scale * code with the nearest code within 0..top."""
    inverse = _ONE / scale if scale > _ZERO else _ZERO
    errors = squares = _ZERO
    for i in range(BLOCK):
        y = x[i] + minimum
        error = y - scale * np.rint(min(max(y * inverse, _ZERO), top))
        weighted = weight[i] * error
        errors += weighted
        squares += weighted * error
    return errors, squares


@kernel
def choose_codes(x, weight, weights, scale, minimum, step, minimum_step, top):
    """6-bit codes of a block's scale and minimum, by the error that the stored values really leave.

    Tries the four scale codes around scale / step, each with the minimum that suits the errors it leaves.
    """
    inverse = _ONE / minimum_step if minimum_step > _ZERO else _ZERO
    chosen_minimum = min(np.rint(minimum * inverse), _TOP)
    first = np.floor(scale / step) - _ONE if step > _ZERO else -_ONE
    base = chosen_minimum * minimum_step
    chosen = _ZERO
    best = np.float32(np.inf)
    for trial in range(4):
        code = min(max(first + np.float32(trial), _ZERO), _TOP)
        errors, squares = residual_sums(x, weight, base, code * step, top)
        mean = errors / weights if weights > _ZERO else _ZERO
        minimum_code = min(max(np.rint((base - mean) * inverse), _ZERO), _TOP)
        shift = minimum_code * minimum_step - base
        error = squares + shift * (_TWO * errors + shift * weights)
        if error < best:
            best = error
            chosen = code
            chosen_minimum = minimum_code
    return chosen, chosen_minimum


@kernel
def encode(rows, costs, means, top, trials, phases, out):
    """Q4_K (top 15) or Q5_K (top 31) bytes of float32 rows (n, super-blocks, 8, 32) into uint8 out (n, super-blocks,
    bytes).

    costs, means: float32 (super-blocks, 8, 32) or of size 0; without costs ggml's weights. Finds each block's scale and
    minimum (`affine.search`), quantises the eight to common steps, then chooses their codes by the error left; with means,
    codes are balanced. ggml (make_qkx2_quants, make_qkx3_quants and make_qp_quants, MIT) rounds scales and minima on their
    own. Layout: d, dmin (half), 12 bytes of packed 6-bit codes, Q5_K's 32 bytes of fifth bits, 128 bytes of nibbles.
    """
    bits = rows.view(np.int32)
    alone = np.empty((8, BLOCK), np.float32)
    scales = np.empty(8, np.float32)
    minima = np.empty(8, np.float32)
    weights = np.empty(8, np.float32)
    codes = np.empty((2, 8), np.uint8)
    blocks = rows.shape[1] * 8
    quants = np.empty((rows.shape[1], 8, BLOCK), np.uint8)
    steps = np.empty(blocks, np.float32)
    offsets = np.empty(blocks, np.float32)
    table = np.empty((4, 64), np.float32)
    scratch = np.empty((3, blocks if means.size > 0 else 0, BLOCK), np.float32)
    if means.size > 0:
        fill_worths(costs.reshape(blocks, BLOCK), means.reshape(blocks, BLOCK), scratch[2])
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            if costs.size == 0:
                weigh_alone(x, alone)
            weight = costs[block] if costs.size > 0 else alone
            for j in range(8):
                low, high = extremes(bits[row, block, j])
                low = min(low, _ZERO)
                weights[j], values = weight_sums(x[j], weight[j], low)
                scales[j], offset = search(x[j], weight[j], low, high, weights[j], values, top, _ZERO, trials, phases, table)
                minima[j] = -offset
            step, peak = common_step(scales, weights)
            step_bits = covering_half(step, np.float32(63.5), peak)
            minimum_step, peak = common_step(minima, weights)
            minimum_bits = covering_half(minimum_step, np.float32(63.5), peak)
            step = from_half(step_bits)
            minimum_step = from_half(minimum_bits)
            target = out[row, block]
            target[0] = step_bits & 255
            target[1] = step_bits >> 8
            target[2] = minimum_bits & 255
            target[3] = minimum_bits >> 8
            for j in range(8):
                code, minimum_code = choose_codes(x[j], weight[j], weights[j], scales[j], minima[j], step, minimum_step, top)
                codes[0, j] = np.uint8(code)
                codes[1, j] = np.uint8(minimum_code)
                steps[8 * block + j] = code * step
                offsets[8 * block + j] = -minimum_code * minimum_step
                round_codes(x[j], code * step, minimum_code * minimum_step, top, quants[block, j])
            pack_codes(codes, target)
        if means.size > 0:
            flat, flat_quants = rows[row].reshape(blocks, BLOCK), quants.reshape(blocks, BLOCK)
            flat_means = means.reshape(blocks, BLOCK)
            balance(flat, flat_quants, steps, offsets, top, scratch[2], flat_means, scratch[0], scratch[1])
        for block in range(rows.shape[1]):
            pack_quants(quants[block], out[row, block])


@kernel
def round_codes(x, scale, minimum, top, quants):
    """Nearest codes within 0..top of 32 weights under x ~ scale * code - minimum, into uint8 `quants`."""
    inverse = _ONE / scale if scale > _ZERO else _ZERO
    for i in range(BLOCK):
        quants[i] = np.uint8(np.int32(np.rint(min(max((x[i] + minimum) * inverse, _ZERO), top))))


@kernel
def pack_quants(quants, target):
    """Codes (8, 32) from byte 16: 32 bytes of fifth bits (block j's in bit j; Q5_K only), then nibbles, two blocks
    in 32 bytes.
    """
    start = 16
    if target.size > 144:
        start = 48
        for i in range(quants.shape[1]):
            fifths = quants[0, i] >> 4
            for j in range(1, 8):
                fifths |= (quants[j, i] >> 4) << j
            target[16 + i] = fifths
    for pair in range(4):
        for i in range(quants.shape[1]):
            target[start + BLOCK * pair + i] = (quants[2 * pair, i] & 15) | ((quants[2 * pair + 1, i] & 15) << 4)


@kernel
def pack_codes(codes, target):
    """Eight scale and minimum codes of 6 bits in bytes 4 to 15: four whole pairs, whose top bits carry the rest's."""
    for j in range(4):
        target[4 + j] = codes[0, j] | ((codes[0, j + 4] >> 4) << 6)
        target[8 + j] = codes[1, j] | ((codes[1, j + 4] >> 4) << 6)
        target[12 + j] = (codes[0, j + 4] & 15) | ((codes[1, j + 4] & 15) << 4)
