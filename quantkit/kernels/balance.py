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
_SCANS = 12  # of the bisection: to 1/4096 of the price's range


@kernel
def prices(x, codes, steps, offsets, top, variance, mean, price, shift):
    """Of every weight: what moving its code to the other neighbour costs per unit by which it lowers the row's mean error
    in magnitude, and by how much it does, signed as the error is. A move beyond 0..top costs _NEVER. Returns the mean error.
    """
    bias = _ZERO
    for block in range(x.shape[0]):
        step, offset = steps[block], offsets[block]
        size = abs(step)
        way = _ONE if step > _ZERO else -_ONE
        for i in range(x.shape[1]):
            code = np.float32(codes[block, i])
            error = x[block, i] - (step * code + offset)
            pull = error * mean[block, i]
            bias += pull
            to = code + (way if error > _ZERO else -way)
            free = (to >= _ZERO) & (to <= top) & (pull != _ZERO) & (size > _ZERO)
            reach = size * abs(mean[block, i])
            cost = variance[block, i] * size * (size - _TWO * abs(error))
            price[block, i] = cost / reach if free else _NEVER
            shift[block, i] = reach if pull > _ZERO else -reach
    return bias


@kernel
def supply(price, shift, sign, limit):
    """By how much the moves of the right sign that cost at most `limit` lower the mean error."""
    found = _ZERO
    for block in range(price.shape[0]):
        for i in range(price.shape[1]):
            found += sign * shift[block, i] if (price[block, i] <= limit) & (sign * shift[block, i] > _ZERO) else _ZERO
    return found


@kernel
def dearest(price, shift, sign):
    """The greatest price of the moves of the right sign."""
    found = _ZERO
    for block in range(price.shape[0]):
        for i in range(price.shape[1]):
            good = (price[block, i] < _NEVER) & (sign * shift[block, i] > _ZERO)
            found = max(found, price[block, i] if good else _ZERO)
    return found


@kernel
def balance(x, codes, steps, offsets, top, variance, mean, price, shift):
    """Move codes (blocks, n) of a row x ~ step * code + offset so that the sum of mean * error is near zero.

    The cheapest moves are taken, up to the price at which one more would cost more than it saves; a last one settles what is
    left. codes: uint8 within 0..top, changed in place; steps, offsets: float32 (blocks,); variance, mean: float32 (blocks, n);
    price, shift: scratch of their shape.
    """
    bias = prices(x, codes, steps, offsets, top, variance, mean, price, shift)
    sign = _ONE if bias > _ZERO else -_ONE
    left = abs(bias)
    low, high = _ZERO, min(dearest(price, shift, sign), _TWO * left)
    for _ in range(_SCANS):
        limit = (low + high) * np.float32(0.5)
        # moves at a price p are worth while as long as they take away more than p / 2 of the error that is left
        if supply(price, shift, sign, limit) + limit * np.float32(0.5) > left:
            high = limit
        else:
            low = limit
    for block in range(x.shape[0]):
        way = np.int32(1) if steps[block] > _ZERO else np.int32(-1)
        for i in range(x.shape[1]):
            if (price[block, i] <= low) & (sign * shift[block, i] > _ZERO):
                up = (sign > _ZERO) == (mean[block, i] > _ZERO)
                codes[block, i] = np.uint8(np.int32(codes[block, i]) + (way if up else -way))
                left -= sign * shift[block, i]
                price[block, i] = _NEVER
    settle(codes, steps, mean, price, shift, sign, left)


@kernel
def settle(codes, steps, mean, price, shift, sign, left):
    """The one more move that lowers cost and mean error together the most, if any does."""
    if not left > _ZERO:
        return
    best, at, where = _ZERO, -1, -1
    for block in range(price.shape[0]):
        for i in range(price.shape[1]):
            reach = sign * shift[block, i]
            gain = left * left - (left - reach) * (left - reach) - price[block, i] * reach
            if (reach > _ZERO) & (price[block, i] < _NEVER) & (gain > best):
                best, at, where = gain, block, i
    if at >= 0:
        way = np.int32(1) if steps[at] > _ZERO else np.int32(-1)
        up = (sign > _ZERO) == (mean[at, where] > _ZERO)
        codes[at, where] = np.uint8(np.int32(codes[at, where]) + (way if up else -way))
