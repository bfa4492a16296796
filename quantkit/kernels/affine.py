"""The search for x ~ scale * code + offset over one block of 32 weights, shared by Q4_1, Q5_1, Q4_K and Q5_K."""

import numpy as np

from quantkit.kernels.halves import TINY, from_half
from quantkit.kernels.jit import kernel

BLOCK = 32
CANDIDATES = 28  # rows of the scratch table that `search` wants: trials * phases
_FLAT = np.float32(1e-6)  # a variance below this part of the squares is rounding: all codes are one
_COARSE = np.float32(3e-5)  # a subnormal half: steps of 2^-24, 0.2 % of this and more of anything less
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_MAGNITUDE = np.int32(0x7FFFFFFF)


@kernel
def extremes(bits):
    """Least and greatest of the 32 floats that the int32 array `bits` holds.

    Compared as integers in the floats' order: unlike float comparisons, those vectorise without assumptions on NaN.
    """
    low = np.int32(_MAGNITUDE)
    high = np.int32(~_MAGNITUDE)
    for i in range(bits.size):
        key = np.int32(bits[i] ^ ((bits[i] >> 31) & _MAGNITUDE))
        low = min(low, key)
        high = max(high, key)
    low = np.int32(low ^ ((low >> 31) & _MAGNITUDE))
    high = np.int32(high ^ ((high >> 31) & _MAGNITUDE))
    return low.view(np.float32), high.view(np.float32)


@kernel
def code_sums(x, weight, low, inverse, top):
    """Weighted sums of code, code^2 and code * (x - low), for code = rint((x - low) * inverse) within 0..top."""
    codes = squares = products = _ZERO
    for i in range(BLOCK):
        y = x[i] - low
        code = np.rint(min(max(y * inverse, _ZERO), top))
        weighted = weight[i] * code
        codes += weighted
        squares += weighted * code
        products += weighted * y
    return codes, squares, products


@kernel
def weight_sums(x, weight, low):
    """Sum of the weights and of weight * (x - low)."""
    weights = values = _ZERO
    for i in range(x.size):
        weights += weight[i]
        values += weight[i] * (x[i] - low)
    return weights, values


@kernel
def search(x, weight, low, high, weights, values, top, ceiling, trials, phases, table):
    """Scale > 0 and offset <= ceiling that minimise sum of weight * (x - scale * code - offset)^2 over 32 weights.

    Tries `trials` steps from (top - 2) to (top + 0.9) codes over the range, each at `phases` starts within one code,
    solves the weighted least squares of each set of codes in closed form, and lets the best one settle by rounding and
    solving again twice. ggml's make_qkx2_quants and make_qkx3_quants try 16 to 37 steps at a single start and do not
    settle.

    low, high: the extremes, low <= ceiling; weights, values: weight_sums at low; table: float32 scratch (4, >=
    trials * phases). Returns (0, low) for a block without spread or without weight.
    """
    spread = high - low
    if not (spread > TINY and weights > _ZERO):
        return _ZERO, low
    inverse = _ONE / spread
    mean = values / weights
    count = 0
    for phase in range(phases):
        shift = min(np.float32(phase) / np.float32(phases) * spread / top, ceiling - low)
        for trial in range(trials):
            steps = top - _TWO + np.float32(2.9) * np.float32(trial) / np.float32(trials - 1)
            codes, squares, products = code_sums(x, weight, low + shift, steps * inverse, top)
            table[0, count] = codes
            table[1, count] = squares
            table[2, count] = products
            table[3, count] = shift
            count += 1
    best = np.int64(0)
    room = ceiling - low
    for c in range(count):
        shift = table[3, c]
        gain, _, _ = solve(table[0, c], table[1, c], table[2, c], weights, mean - shift, room - shift, mean)
        best = max(best, (np.int64(np.float32(gain).view(np.int32)) << 8) + c)
    if best < 256:
        return spread / top, low
    c = best & 255
    shift = table[3, c]
    _, scale, offset = solve(table[0, c], table[1, c], table[2, c], weights, mean - shift, room - shift, mean)
    base = low + shift
    for _ in range(2):
        shift += offset
        base = low + shift
        codes, squares, products = code_sums(x, weight, base, _ONE / scale, top)
        gain, fitted, offset = solve(codes, squares, products, weights, mean - shift, ceiling - base, mean)
        if not gain > _ZERO:
            return scale, base
        scale = fitted
    return scale, base + offset


@kernel
def solve(codes, squares, products, weights, mean, ceiling, spare):
    """Weighted least squares y ~ scale * code + offset, offset <= ceiling, for one set of codes: error saved, scale,
    offset.

    mean: weighted mean of y; spare: what it would be from the block's least weight, whose square the gain counts in,
    so that gains from different starts compare. The gain is 0 where the codes are of no use. Divided by the weights
    early, so that tiny ones do not underflow.
    """
    mean_code = codes / weights
    variance = squares - codes * mean_code
    scale = (products - codes * mean) / variance
    offset = mean - scale * mean_code
    bound = offset > ceiling
    offset = ceiling if bound else offset
    scale = (products - offset * codes) / squares if bound else scale
    gain = scale * (_TWO * products - scale * squares)
    gain += offset * (_TWO * (mean * weights - scale * codes) - offset * weights)
    gain += (spare * spare - mean * mean) * weights
    usable = (variance > _FLAT * squares) & (scale > _ZERO) & (gain > _ZERO)
    return np.float32(gain if usable else _ZERO), scale, offset


@kernel
def rounding_error(x, weight, scale, offset, least, greatest):
    """Weighted squared error of 32 weights under x ~ scale * code + offset with the nearest codes within
    least..greatest.
    """
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    error = _ZERO
    for i in range(BLOCK):
        y = x[i] - offset
        miss = y - scale * np.rint(min(max(y * inverse, least), greatest))
        error += weight[i] * miss * miss
    return error


@kernel
def any_coarse(scales):
    """Whether any scale of a row is so small that `storable_scale` has a say; a quick look that spares ordinary rows
    the calls.
    """
    coarse = 0
    for block in range(scales.size):
        coarse += 1 if abs(scales[block]) < _COARSE else 0
    return coarse > 0


@kernel
def storable_scale(x, weight, scale, offset, least, greatest):
    """The scale, or where halves near it are coarse, that of the two halves around it which leaves the lesser error."""
    if abs(scale) > _COARSE:
        return scale
    low_bits = np.int32(abs(scale) * np.float32(16777216))
    low = from_half(low_bits)
    high = from_half(np.int32(low_bits + 1))
    if scale < _ZERO:
        low, high = -low, -high
    low_error = rounding_error(x, weight, low, offset, least, greatest)
    return low if low_error < rounding_error(x, weight, high, offset, least, greatest) else high
