"""Scales and zeros of groups of columns, by the least weighted error of rounding: x ~ scale * (code - zero), code in 0..top."""

import numpy as np

from quantkit.kernels.halves import from_half, to_half
from quantkit.kernels.jit import kernel

_ZERO = np.float32(0)
_ONE = np.float32(1)
_MARGIN = np.float32(1.000001)  # a gain within rounding is none
_SMALLEST = np.float32(1 / (1 << 21))  # halves below it keep hardly a digit


@kernel
def sums(x, weight, inverse, zero, top):
    """Weighted sums of (code - zero) * x and (code - zero)^2 for the codes of x under a scale's inverse."""
    products = squares = _ZERO
    for i in range(x.size):
        code = min(max(np.rint(x[i] * inverse), -zero), top - zero)
        weighted = weight[i] * code
        products += weighted * x[i]
        squares += weighted * code
    return products, squares


@kernel
def stored(scale):
    """As float16 holds it, never less than _SMALLEST."""
    return from_half(to_half(max(scale, _SMALLEST)))


@kernel
def symmetric(x, weight, top, shrinks):
    """The positive scale, as float16 holds it, of codes around zero = (top + 1) / 2: of those that put the farther end of x at
    `shrinks` times the codes' end, each settled by least squares, the one of least weighted error."""
    zero = (top + _ONE) * np.float32(0.5)
    low = high = _ZERO
    for i in range(x.size):
        low = min(low, x[i])
        high = max(high, x[i])
    reach = max(-low / zero, high / (top - zero))
    scale = stored(reach)
    if reach <= _ZERO:
        return scale
    best = _ZERO
    for trial in range(shrinks.size):
        products, squares = sums(x, weight, _ONE / (reach * shrinks[trial]), zero, top)
        fitted = products / squares if squares > _ZERO else _ZERO
        better = fitted * products > best * _MARGIN
        best = fitted * products if better else best
        scale = fitted if better else scale
    products, squares = sums(x, weight, _ONE / scale, zero, top)
    return stored(products / squares if squares > _ZERO else scale)


@kernel
def asymmetric(x, weight, top, shrinks):
    """Scale, as float16 holds it, and whole zero in 0..top: the ends of x are drawn in by every pair of `shrinks`, the scale
    settled by least squares, and the pair of least weighted error taken."""
    low = high = _ZERO
    for i in range(x.size):
        low = min(low, x[i])
        high = max(high, x[i])
    if high <= low:
        return stored(_ZERO), _ZERO
    scale, chosen, best = (high - low) / top, _ZERO, _ZERO
    chosen = min(max(np.rint(-low / scale), _ZERO), top)
    for first in range(shrinks.size):
        for second in range(shrinks.size):
            step = (high * shrinks[second] - low * shrinks[first]) / top
            zero = min(max(np.rint(-low * shrinks[first] / step), _ZERO), top)
            products, squares = sums(x, weight, _ONE / step, zero, top)
            fitted = products / squares if squares > _ZERO else _ZERO
            better = fitted * products > best * _MARGIN
            best = fitted * products if better else best
            scale = fitted if better else scale
            chosen = zero if better else chosen
    products, squares = sums(x, weight, _ONE / scale, chosen, top)
    return stored(products / squares if squares > _ZERO else scale), chosen


@kernel
def search(rows, weight, group, top, shrinks, centred, scales, zeros):
    """Scales and zeros (n, groups) of float32 rows (n, width), every `group` columns; weight: float32 (width,) >= 0.

    centred: symmetric codes, all zeros (top + 1) / 2. shrinks: what the ends of a group are drawn in by, (1,) alone for the
    least and greatest weight.
    """
    for row in range(rows.shape[0]):
        for index in range(scales.shape[1]):
            x = rows[row, index * group : (index + 1) * group]
            w = weight[index * group : (index + 1) * group]
            if centred:
                scales[row, index] = symmetric(x, w, top, shrinks)
                zeros[row, index] = (top + _ONE) * np.float32(0.5)
            else:
                scales[row, index], zeros[row, index] = asymmetric(x, w, top, shrinks)


@kernel
def extremes(rows, group, top, centred, scales, zeros):
    """As `search`, of the least and greatest weight of each group: what GPTQ had at first (symmetric: 2 * peak / top)."""
    for row in range(rows.shape[0]):
        for index in range(scales.shape[1]):
            low = high = _ZERO
            for i in range(index * group, (index + 1) * group):
                low = min(low, rows[row, i])
                high = max(high, rows[row, i])
            if centred:
                scales[row, index] = stored(np.float32(2) * max(-low, high) / top)
                zeros[row, index] = (top + _ONE) * np.float32(0.5)
            else:
                scales[row, index] = stored((high - low) / top)
                zeros[row, index] = min(max(np.rint(-low / scales[row, index]), _ZERO), top)
