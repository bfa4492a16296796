"""Q4_1 and Q5_1: blocks of 32 weights with a scale and an offset in half precision, x ~ scale * code + offset."""

import numpy as np

from quantkit.kernels.affine import BLOCK, any_coarse, extremes, search, storable_scale, weight_sums
from quantkit.kernels.balance import balance, fill_worths
from quantkit.kernels.halves import TINY, from_half, to_half
from quantkit.kernels.jit import kernel
from quantkit.kernels.packing import store_codes
from quantkit.kernels.symmetric import store_scales

_ZERO = np.float32(0)
_ONE = np.float32(1)


@kernel
def plain_sums(x, low, inverse):
    """Sums of code, code^2, code * y and y for y = x - low and the codes rint(y * inverse)."""
    codes = squares = products = values = _ZERO
    for i in range(BLOCK):
        y = x[i] - low
        code = np.rint(y * inverse)
        codes += code
        squares += code * code
        products += code * y
        values += y
    return codes, squares, products, values


@kernel
def plain_fit(codes, squares, products, values, scales, lows):
    """Least-squares scales and offsets from `plain_sums` at `lows`, per block; scale 0 and the mean where all codes
    are one.
    """
    count = np.float32(BLOCK)
    for block in range(scales.size):
        determinant = count * squares[block] - codes[block] * codes[block]
        scale = (count * products[block] - values[block] * codes[block]) / determinant if determinant > _ZERO else _ZERO
        scales[block] = scale
        lows[block] += (values[block] - scale * codes[block]) / count


@kernel
def store_offsets(lows, spreads, scales, halves):
    """Turn offsets into halves (uint16); in place, `lows` becomes what is stored.

    A block without spread gets what the half leaves of its value as scale, for code 1: 22 bits of its value.
    """
    for block in range(lows.size):
        bits = to_half(lows[block])
        offset = from_half(bits)
        halves[block] = np.uint16(bits)
        scales[block] = scales[block] if spreads[block] > TINY else lows[block] - offset
        lows[block] = offset


@kernel
def round_codes(x, low, inverse, top, quants):
    """Codes within 0..top of 32 weights into uint8 quants; `low` and `inverse` are those of the stored values."""
    for i in range(BLOCK):
        quants[i] = np.uint8(np.int32(np.rint(min(max((x[i] - low) * inverse, _ZERO), top))))


@kernel
def encode(rows, costs, means, top, trials, phases, out):
    """Q4_1 (top 15) or Q5_1 (top 31) of float32 rows (n, blocks, 32) into uint16 out (n, blocks, 10 or 12).

    costs, means: (blocks, 32), or of size 0. Without costs, least and greatest weight give the codes as in ggml, then scale
    and offset are refitted to these by least squares: the squared error falls. With them, `affine.search` takes the place of
    make_qkx3_quants (MIT), which also confines the offset to <= 0; with means, codes are balanced.
    """
    bits = rows.view(np.int32)
    lows = np.empty(rows.shape[1], np.float32)
    scales = np.empty(rows.shape[1], np.float32)
    spreads = np.empty(rows.shape[1], np.float32)
    sums = np.empty((4, rows.shape[1]), np.float32)
    scale_halves = np.empty(rows.shape[1], np.uint16)
    offset_halves = np.empty(rows.shape[1], np.uint16)
    table = np.empty((4, 64), np.float32)
    ones = np.ones(BLOCK, np.float32)
    few = np.empty(BLOCK, np.uint8)
    words = few.view(np.uint64)
    quants = np.empty((means.shape[0], BLOCK), np.uint8)
    scratch = np.empty((3, *means.shape), np.float32)
    fill_worths(costs, means, scratch[2])
    fifths = out.shape[2] > 10
    for row in range(rows.shape[0]):
        for block in range(lows.size):
            low, high = extremes(bits[row, block])
            lows[block] = low
            spreads[block] = high - low
        if costs.size > 0:
            for block in range(lows.size):
                x = rows[row, block]
                low = lows[block]
                high = low + spreads[block]
                weights, values = weight_sums(x, costs[block], low)
                scale, offset = search(x, costs[block], low, high, weights, values, top, high, trials, phases, table)
                lows[block] = offset
                scales[block] = storable_scale(x, costs[block], scale, from_half(to_half(offset)), _ZERO, top)
        else:
            for block in range(lows.size):
                scales[block] = top / spreads[block] if spreads[block] > TINY else _ZERO
            for block in range(lows.size):
                sums[0, block], sums[1, block], sums[2, block], sums[3, block] = plain_sums(
                    rows[row, block], lows[block], scales[block]
                )
            plain_fit(sums[0], sums[1], sums[2], sums[3], scales, lows)
            if any_coarse(scales):
                for block in range(lows.size):
                    offset = from_half(to_half(lows[block]))
                    scales[block] = storable_scale(rows[row, block], ones, scales[block], offset, _ZERO, top)
        store_offsets(lows, spreads, scales, offset_halves)
        store_scales(scales, scale_halves)
        if means.size == 0:  # in one loop: codes in a row's buffer would halve the speed
            for block in range(lows.size):
                out[row, block, 0] = scale_halves[block]
                out[row, block, 1] = offset_halves[block]
                round_codes(rows[row, block], lows[block], scales[block], top, few)
                store_codes(words, fifths, out[row, block], 2)
        else:
            for block in range(lows.size):
                round_codes(rows[row, block], lows[block], scales[block], top, quants[block])
                scales[block] = from_half(np.int32(scale_halves[block]))
            balance(rows[row], quants, scales, lows, top, scratch[2], means, scratch[0], scratch[1])
            for block in range(lows.size):
                out[row, block, 0] = scale_halves[block]
                out[row, block, 1] = offset_halves[block]
                store_codes(quants[block].view(np.uint64), fifths, out[row, block], 2)
