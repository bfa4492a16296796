"""Rounding that spares the mean: of the codes on either side of a weight, those are taken that keep a row's output unbiased.

The inputs of a matrix have means far from zero. H = E[x x^T] is near diag(v) + m m^T with m the means and v the variances of
the columns, so that a row's errors e cost sum of v e^2 plus (sum of m e)^2. Rounding to nearest minimises the first sum and
leaves the second to chance, about as large; moving a few codes that lie nearly halfway to their other neighbour takes the
second to zero and adds little to the first. (GPTQ does the same for all of H; this needs two numbers a column.)
"""

import numpy as np

from quantkit.kernels.jit import kernel

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_NEVER = np.float32(3e38)
_SCANS = 7  # of the bisection over the logarithm of the price: to 12 % of it, and two more gain 0.0007 of the cost
_CHEAP = np.float32(1 / (1 << 20))  # of the greatest price that can be worth while


@kernel
def fill_worths(costs, means, worths):
    """What an error costs for what its column's mean makes of it: costs / |means|, 0 without a mean; float32 (blocks, n)."""
    for block in range(means.shape[0]):
        for i in range(means.shape[1]):
            size = abs(means[block, i])
            worths[block, i] = costs[block, i] / size if size > _ZERO else _ZERO


@kernel
def prices(x, codes, steps, offsets, top, worths, means, price, shift):
    """Of every weight: by how much moving its code to the other neighbour lowers the row's mean error, signed as the error is,
    and what it costs per unit of that; a move beyond 0..top costs _NEVER. Returns the mean error.
    """
    bias = _ZERO
    for block in range(x.shape[0]):
        step, offset = steps[block], offsets[block]
        size = abs(step)
        way = _ONE if step > _ZERO else -_ONE
        for i in range(x.shape[1]):
            code = np.float32(codes[block, i])
            error = x[block, i] - (step * code + offset)
            pull = error * means[block, i]
            bias += pull
            to = code + (way if error > _ZERO else -way)
            reach = size * abs(means[block, i])
            free = (to >= _ZERO) & (to <= top) & (reach > _ZERO)
            price[block, i] = worths[block, i] * (size - _TWO * abs(error)) if free else _NEVER
            shift[block, i] = reach if pull > _ZERO else -reach
    return bias


@kernel
def keep_one_side(price, shift, sign):
    """Strike the moves that would raise the mean error's magnitude; `shift` becomes by how much each lowers it."""
    for i in range(price.size):
        right = sign * shift[i] > _ZERO
        price[i] = price[i] if right else _NEVER
        shift[i] = abs(shift[i])


@kernel
def supply(price, shift, limit):
    """By how much the moves that cost at most `limit` lower the mean error together."""
    found = _ZERO
    for i in range(price.size):
        found += shift[i] if price[i] <= limit else _ZERO
    return found


@kernel
def move(codes, steps, means, sign, block, i):
    """Take a code to its other neighbour: upwards where the weight lies above what the code stands for."""
    up = ((sign > _ZERO) == (means[block, i] > _ZERO)) == (steps[block] > _ZERO)
    codes[block, i] = np.uint8(np.int32(codes[block, i]) + (np.int32(1) if up else np.int32(-1)))


@kernel
def best_move(price, shift, left):
    """Index of the one move that lowers cost and mean error together the most, -1 if none does."""
    best = np.int32(0)
    for i in range(price.size):
        reach = shift[i]
        gain = left * left - (left - reach) * (left - reach) - min(price[i], np.float32(1e30)) * reach
        best = max(best, np.float32(gain).view(np.int32))  # positive floats are ordered as integers
    if best == 0:
        return -1
    for i in range(price.size):
        reach = shift[i]
        gain = left * left - (left - reach) * (left - reach) - min(price[i], np.float32(1e30)) * reach
        if np.float32(gain).view(np.int32) == best:
            return i
    return -1


@kernel
def balance(x, codes, steps, offsets, top, worths, means, price, shift):
    """Move codes (blocks, n) of a row x ~ step * code + offset so that the sum of mean * error is near zero.

    The cheapest moves are taken, up to the price at which one more would cost more than it saves; a last one settles what is
    left. codes: uint8 within 0..top, changed in place; steps, offsets: float32 (blocks,); worths: of `fill_worths`;
    means: float32 (blocks, n); price, shift: scratch of their shape.
    """
    take_moves(codes, steps, means, prices(x, codes, steps, offsets, top, worths, means, price, shift), price, shift)


@kernel
def balance_levels(x, codes, steps, levels, worths, means, price, shift):
    """`balance` for x ~ step * levels[code], with levels float32 in rising order."""
    take_moves(codes, steps, means, level_prices(x, codes, steps, levels, worths, means, price, shift), price, shift)


@kernel
def level_prices(x, codes, steps, levels, worths, means, price, shift):
    """`prices` where neighbouring codes are not equally far apart."""
    bias = _ZERO
    for block in range(x.shape[0]):
        step = steps[block]
        for i in range(x.shape[1]):
            code = np.int64(codes[block, i])
            error = x[block, i] - step * levels[code]
            pull = error * means[block, i]
            bias += pull
            to = code + (1 if (error > _ZERO) == (step > _ZERO) else -1)
            inside = (to >= 0) & (to < levels.size)
            moved = error - step * (levels[to if inside else code] - levels[code])
            reach = abs((moved - error) * means[block, i])
            price[block, i] = worths[block, i] * abs(moved + error) if inside & (reach > _ZERO) else _NEVER
            shift[block, i] = reach if pull > _ZERO else -reach
    return bias


@kernel
def take_moves(codes, steps, means, bias, price, shift):
    """Take the moves that are worth while, given their prices and the mean error `bias`."""
    sign = _ONE if bias > _ZERO else -_ONE
    left = abs(bias)
    flat_price, flat_shift = price.reshape(price.size), shift.reshape(shift.size)
    keep_one_side(flat_price, flat_shift, sign)
    accepted, high = _ZERO, _TWO * left
    low = high * _CHEAP
    for _ in range(_SCANS):
        limit = np.sqrt(low * high)
        # a move is worth while as long as it takes away more than half its price of the error that is left
        over = supply(flat_price, flat_shift, limit) + limit * np.float32(0.5) > left
        accepted = accepted if over else limit
        low = low if over else limit
        high = limit if over else high
    count = price.shape[1]
    for block in range(price.shape[0]):  # without a branch, so that it is a few vector instructions
        along = (sign > _ZERO) == (steps[block] > _ZERO)
        for i in range(count):
            taken = price[block, i] <= accepted
            way = np.int32(1) if (means[block, i] > _ZERO) == along else np.int32(-1)
            codes[block, i] = np.uint8(np.int32(codes[block, i]) + (way if taken else np.int32(0)))
            left -= shift[block, i] if taken else _ZERO
            price[block, i] = _NEVER if taken else price[block, i]
    if left > _ZERO:
        at = best_move(flat_price, flat_shift, left)
        if at >= 0:
            move(codes, steps, means, sign, at // count, at % count)
