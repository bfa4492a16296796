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
_SCANS = 9  # of the bisection over the logarithm of the price: to 3 % of it
_CHEAP = np.float32(1 / (1 << 20))  # of the greatest price that can be worth while


@kernel
def prices(x, codes, steps, offsets, top, costs, means, price, shift):
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
            cost = costs[block, i] * size * (size - _TWO * abs(error))
            price[block, i] = cost / reach if free else _NEVER
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
def balance(x, codes, steps, offsets, top, costs, means, price, shift):
    """Move codes (blocks, n) of a row x ~ step * code + offset so that the sum of mean * error is near zero.

    The cheapest moves are taken, up to the price at which one more would cost more than it saves; a last one settles what is
    left. codes: uint8 within 0..top, changed in place; steps, offsets: float32 (blocks,); costs, means: float32 (blocks, n);
    price, shift: scratch of their shape.
    """
    take_moves(codes, steps, means, prices(x, codes, steps, offsets, top, costs, means, price, shift), price, shift)


@kernel
def balance_levels(x, codes, steps, levels, costs, means, price, shift):
    """`balance` for x ~ step * levels[code], with levels float32 in rising order."""
    take_moves(codes, steps, means, level_prices(x, codes, steps, levels, costs, means, price, shift), price, shift)


@kernel
def level_prices(x, codes, steps, levels, costs, means, price, shift):
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
            cost = costs[block, i] * (moved * moved - error * error)
            price[block, i] = cost / reach if inside & (reach > _ZERO) else _NEVER
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
    for block in range(price.shape[0]):
        for i in range(count):
            if price[block, i] <= accepted:
                move(codes, steps, means, sign, block, i)
                left -= shift[block, i]
                price[block, i] = _NEVER
    if left > _ZERO:
        at = best_move(flat_price, flat_shift, left)
        if at >= 0:
            move(codes, steps, means, sign, at // count, at % count)
