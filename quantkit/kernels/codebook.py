"""IQ4_NL, IQ4_XS and MXFP4: x ~ step * level, with fifteen or sixteen levels that are not equally far apart."""

import numpy as np

from quantkit.kernels.balance import balance_levels, fill_worths
from quantkit.kernels.halves import TINY, covering_half, from_half, near_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.packing import store_codes

BLOCK = 32
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""ggml's kvalues_iq4nl."""
FP4 = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32)
"""Twice the values of E2M1, in order; the sign of zero is plus."""
_IQ4_MIDDLES = (IQ4[1:] + IQ4[:-1]) / np.float32(2)
_FP4_MIDDLES = (FP4[1:] + FP4[:-1]) / np.float32(2)
_FP4_GAPS = FP4[1:] - FP4[:-1]
_FP4_CODES = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)
_ZERO = np.float32(0)
_ONE = np.float32(1)
# level ~ l0 + code (l1 + code (...)), exact once rounded; code ~ c0 + y (c1 + y (...)) of a value y: minimax fits to IQ4
_L0, _L1, _L2 = np.float32(-126.5664317), np.float32(24.17222344), np.float32(-1.371539478)
_L3, _L4 = np.float32(0.03105468850), np.float32(0.001586901845)
_C0, _C1, _C2 = np.float32(7.878435524), np.float32(0.08529235068), np.float32(1.950970607e-06)
_C3, _C4, _C5 = np.float32(-2.743542624e-06), np.float32(-6.916324556e-10), np.float32(8.186579415e-11)
_TARGETS = np.concatenate([[-127, -88], -np.linspace(102, 143, 7), -np.geomspace(159, 318, 6), np.geomspace(75, 165, 6)])
_TARGETS = _TARGETS.astype(np.float32)  # levels at which the search puts a block's peak
_NUDGES = np.array([0.945, 0.97, 1.03, 1.058], np.float32)  # by which the best of these is tried once more
_MARGIN = np.float32(1.000001)  # a gain within rounding is none


@kernel
def near_iq4(y):
    """The level nearest y, or the next where y is within 2.5 % of a step of halfway; as polynomials, twice as fast as
    fifteen comparisons.
    """
    y = min(max(y, np.float32(-127)), np.float32(113))
    code = np.rint(_C0 + y * (_C1 + y * (_C2 + y * (_C3 + y * (_C4 + y * _C5)))))
    return np.rint(_L0 + code * (_L1 + code * (_L2 + code * (_L3 + code * _L4))))


@kernel
def index_iq4(y):
    index = np.uint8(0)
    for k in range(15):
        index += np.uint8(1) if y > _IQ4_MIDDLES[k] else np.uint8(0)
    return index


@kernel
def nearest_fp4(y):
    level = FP4[0]
    for k in range(14):
        level += _FP4_GAPS[k] if y > _FP4_MIDDLES[k] else _ZERO
    return level


@kernel
def index_fp4(y):
    index = np.uint8(0)
    for k in range(14):
        index += np.uint8(1) if y > _FP4_MIDDLES[k] else np.uint8(0)
    return index


@kernel
def find_peak(x):
    """The weight of greatest magnitude, with its sign."""
    high = low = x[0]
    for i in range(x.size):
        high = x[i] if x[i] > high else high
        low = x[i] if x[i] < low else low
    return high if high > -low else low


@kernel
def level_sums(x, weight, inverse):
    """Weighted sums of level * x and level^2 for the levels near x * inverse."""
    products = squares = _ZERO
    for i in range(BLOCK):
        level = near_iq4(x[i] * inverse)
        weighted = weight[i] * level
        products += weighted * x[i]
        squares += weighted * level
    return products, squares


@kernel
def search(x, weight):
    """The scale of least weighted error among those that put the peak at _TARGETS, and _NUDGES times the best of these,
    each solved in closed form; the winner settles twice. As `symmetric.weighted_scale`.
    """
    peak = find_peak(x)
    best = scale = chosen = _ZERO
    if abs(peak) < TINY:
        return scale
    for trial in range(_TARGETS.size + _NUDGES.size):
        again = trial >= _TARGETS.size
        target = chosen * _NUDGES[trial - _TARGETS.size] if again else _TARGETS[trial]
        products, squares = level_sums(x, weight, target / peak)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
        chosen = target if better & (not again) else chosen
    for _ in range(2):
        if scale != _ZERO:
            products, squares = level_sums(x, weight, _ONE / scale)
            scale = products / squares if squares > _ZERO else scale
    return scale


@kernel
def level_error(x, weight, scale):
    """Weighted squared error of the levels nearest under `scale`."""
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    error = _ZERO
    for i in range(BLOCK):
        miss = x[i] - scale * near_iq4(x[i] * inverse)
        error += weight[i] * miss * miss
    return error


@kernel
def round_levels(x, scale, quants):
    """Indices of the nearest levels into uint8 quants."""
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    for i in range(BLOCK):
        quants[i] = index_iq4(x[i] * inverse)


@kernel
def encode(rows, costs, means, out):
    """IQ4_NL of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 9).

    costs, means: (blocks, 32), or of size 0; without costs all weights count alike: ggml's x^2 with this search gives worse
    files than with ggml's own (LOG.md). ggml's quantize_row_iq4_nl_impl (MIT) tries sixteen scales within 6 % of -127.
    """
    ones = np.ones(BLOCK, np.float32)
    quants = np.empty((rows.shape[1], BLOCK), np.uint8)
    steps = np.empty(rows.shape[1], np.float32)
    scratch = np.empty((3, *means.shape), np.float32)
    fill_worths(costs, means, scratch[2])
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            scale = search(x, costs[block] if costs.size > 0 else ones)
            bits = to_half(scale)
            below = level_error(x, costs[block] if costs.size > 0 else ones, from_half(bits))
            above = level_error(x, costs[block] if costs.size > 0 else ones, from_half(np.int32(bits + 1)))
            bits = np.int32(bits + 1) if (above < below) & ((bits & 0x7FFF) < 0x7BFF) else bits
            out[row, block, 0] = np.uint16(bits)
            steps[block] = from_half(bits)
            round_levels(x, steps[block], quants[block])
        if means.size > 0:
            balance_levels(rows[row], quants, steps, IQ4, scratch[2], means, scratch[0], scratch[1])
        for block in range(rows.shape[1]):
            store_codes(quants[block].view(np.uint64), False, out[row, block], 1)


@kernel
def common_step(scales, energies):
    """The signed step that suits eight scales, as a half's bits: of those that put the largest at -32 and the fifteen codes
    above, the one whose multiples lie nearest, weighted by what a relative miss costs, the block's energy."""
    largest = _ZERO
    for j in range(8):
        largest = scales[j] if abs(scales[j]) > abs(largest) else largest
    if abs(largest) < TINY:
        return np.int32(0)
    best, chosen = np.float32(np.inf), 0
    for trial in range(16):
        step = near_half(largest / np.float32(trial - 32))
        error = _ZERO
        for j in range(8):
            scale = scales[j] if abs(scales[j]) > TINY else largest
            miss = _ONE - step * np.rint(scale / step) / scale
            error += energies[j] * miss * miss
        if error < best:
            best, chosen = error, trial
    return covering_half(largest / np.float32(chosen - 32), np.float32(32.5), abs(largest))


@kernel
def best_code(x, weight, scale, step):
    """Of the codes -32..31 around scale / step the one that leaves the least error."""
    first = np.rint(scale / step) if step != _ZERO else _ZERO
    best, chosen = np.float32(np.inf), _ZERO
    for offset in range(-1, 2):
        code = min(max(first + np.float32(offset), np.float32(-32)), np.float32(31))
        error = level_error(x, weight, code * step)
        if error < best:
            best, chosen = error, code
    return chosen, best


@kernel
def encode_superblocks(rows, costs, means, out):
    """IQ4_XS of float32 rows (n, super-blocks, 8, 32) into uint8 out (n, super-blocks, 136).

    costs, means: (super-blocks, 8, 32), or of size 0. As IQ4_NL; the eight scales get a common half step, codes by the error
    that they leave, and the step a refit to the stored codes.
    """
    ones = np.ones((8, BLOCK), np.float32)
    scales, energies = np.empty(8, np.float32), np.empty(8, np.float32)
    codes, again = np.empty(8, np.float32), np.empty(8, np.float32)
    blocks = rows.shape[1] * 8
    quants = np.empty((rows.shape[1], 8, BLOCK), np.uint8)
    steps = np.empty(blocks, np.float32)
    scratch = np.empty((3, blocks if means.size > 0 else 0, BLOCK), np.float32)
    if means.size > 0:
        fill_worths(costs.reshape(blocks, BLOCK), means.reshape(blocks, BLOCK), scratch[2])
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            weight = costs[block] if costs.size > 0 else ones
            for j in range(8):
                scales[j] = search(x[j], weight[j])
                energy = _ZERO
                for i in range(BLOCK):
                    energy += weight[j, i] * x[j, i] * x[j, i]
                energies[j] = energy
            bits = common_step(scales, energies)
            best = _ZERO
            for j in range(8):
                codes[j], error = best_code(x[j], weight[j], scales[j], from_half(bits))
                best += error
            products = squares = _ZERO
            for j in range(8):
                scale = codes[j] * from_half(bits)
                product, part = level_sums(x[j], weight[j], _ONE / scale if scale != _ZERO else _ZERO)
                products += codes[j] * product
                squares += codes[j] * codes[j] * part
            tried = to_half(products / squares if squares > _ZERO else _ZERO)
            found = _ZERO
            for j in range(8):
                again[j], error = best_code(x[j], weight[j], scales[j], from_half(tried))
                found += error
            if found < best:
                bits = tried
                codes[:] = again
            pack_scales(bits, codes, out[row, block])
            for j in range(8):
                steps[8 * block + j] = codes[j] * from_half(bits)
                round_levels(x[j], steps[8 * block + j], quants[block, j])
        if means.size > 0:
            flat, flat_quants = rows[row].reshape(blocks, BLOCK), quants.reshape(blocks, BLOCK)
            flat_means = means.reshape(blocks, BLOCK)
            balance_levels(flat, flat_quants, steps, IQ4, scratch[2], flat_means, scratch[0], scratch[1])
        for block in range(rows.shape[1]):
            for j in range(8):
                for i in range(16):
                    out[row, block, 8 + 16 * j + i] = quants[block, j, i] | (quants[block, j, 16 + i] << 4)


@kernel
def pack_scales(bits, codes, target):
    """Bytes 0 to 7 of IQ4_XS: the half step, 8 upper bit pairs, 8 low nibbles of the codes + 32."""
    target[0] = bits & 255
    target[1] = bits >> 8
    high = np.int32(0)
    for j in range(4):
        target[4 + j] = 0
    for j in range(8):
        code = np.int32(codes[j]) + 32
        target[4 + j // 2] |= np.uint8((code & 15) << (4 * (j % 2)))
        high |= (code >> 4) << (2 * j)
    target[2] = high & 255
    target[3] = high >> 8


@kernel
def power(exponent):
    """2^(exponent - 128): E8M0 for twice the values of E2M1; exponent 0 and 1 are subnormal floats."""
    shifted = np.int32(0x00200000 << min(exponent, 1))
    normal = np.int32(max(exponent - 1, 0) << 23)
    return np.int32(shifted if exponent < 2 else normal).view(np.float32)


@kernel
def fp4_error(x, weight, step):
    inverse = _ONE / step
    error = _ZERO
    for i in range(BLOCK):
        miss = x[i] - step * nearest_fp4(x[i] * inverse)
        error += weight[i] * miss * miss
    return error


@kernel
def encode_fp4(rows, costs, means, out):
    """MXFP4 of float32 rows (n, blocks, 32) into uint8 out (n, blocks, 17): an exponent, then nibbles.

    costs, means: (blocks, 32), or of size 0. Of three exponents around that of the peak, ggml's rule, the one of least error.
    """
    ones = np.ones(BLOCK, np.float32)
    quants = np.empty((rows.shape[1], BLOCK), np.uint8)
    steps = np.empty(rows.shape[1], np.float32)
    scratch = np.empty((3, *means.shape), np.float32)
    fill_worths(costs, means, scratch[2])
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            weight = costs[block] if costs.size > 0 else ones
            peak = abs(find_peak(x))
            own = np.int32((np.float32(peak).view(np.int32) >> 23) - 2)  # floor(log2(peak)) - 2 + 127
            best, chosen = np.float32(np.inf), np.int32(0)
            for offset in range(-1, 2):
                exponent = np.int32(min(max(own + offset, 2), 254)) if peak > TINY else np.int32(0)
                error = fp4_error(x, weight, power(exponent)) if peak > TINY else _ZERO
                if error < best:
                    best, chosen = error, exponent
            out[row, block, 0] = np.uint8(chosen)
            steps[block] = power(chosen) if peak > TINY else _ZERO
            inverse = _ONE / steps[block] if peak > TINY else _ZERO
            for i in range(BLOCK):
                quants[block, i] = index_fp4(x[i] * inverse)
        if means.size > 0:
            balance_levels(rows[row], quants, steps, FP4, scratch[2], means, scratch[0], scratch[1])
        for block in range(rows.shape[1]):
            for i in range(16):
                out[row, block, 1 + i] = _FP4_CODES[quants[block, i]] | (_FP4_CODES[quants[block, 16 + i]] << 4)
