"""Blocks that lie on a grid already: scale * code with a float16 scale and whole codes, as dequantised checkpoints are."""

import numpy as np

from quantkit.kernels.halves import from_half, to_half
from quantkit.kernels.jit import kernel

BLOCK = 32
_ZERO = np.float32(0)


@kernel
def fits(x, scale, low, high):
    """Whether every value of x is a whole code within low..high times `scale`."""
    for i in range(x.size):
        code = np.rint(x[i] / scale)
        if code < low or code > high or x[i] != code * scale:  # a product of so few bits is exact
            return False
    return True


@kernel
def find_scales(rows, low, high, scales):
    """The scales (n, blocks) of float32 rows (n, blocks, 32) whose blocks all lie on grids; returns False where one does not.

    The greatest magnitude of a block is some whole number of steps, at most -low: these are tried, the greatest scale first.
    """
    for row in range(rows.shape[0]):
        for block in range(rows.shape[1]):
            x = rows[row, block]
            peak = _ZERO
            for i in range(BLOCK):
                peak = max(peak, abs(x[i]))
            scales[row, block] = _ZERO
            if peak == _ZERO:
                continue
            found = False
            for steps in range(1, -low + 1):
                scale = from_half(to_half(peak / np.float32(steps)))
                if scale > _ZERO and fits(x, scale, low, high):
                    scales[row, block] = scale
                    found = True
                    break
            if not found:
                return False
    return True
