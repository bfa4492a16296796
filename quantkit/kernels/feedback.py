"""Rounding with feedback: what a row's first blocks get wrong on the average input, its later blocks make up for.

The inputs of a matrix have means far from zero: of H = E[x x^T] the part m m^T, m being the columns' means, holds half of
the error that rounding to nearest leaves in some matrices. An error e of a row costs about sum of E[x^2] e^2 plus (sum of m
e)^2; rounding to nearest minimises the first sum and leaves the second to chance. So the mean error that is owed, sum of m
e over the blocks before, is spread over the columns to come, each shifted by owed * gain before it is rounded; the gains
(`codecs.blocks.means`) are those of least cost. It is GPTQ (Frantar et al., 2022) for a Hessian of diagonal plus rank one,
in two numbers per column, which llama.cpp's imatrix files hold (in_sum2, and in_sum since 2026).
"""

import numpy as np

from quantkit.kernels.jit import kernel

_HALF = np.float32(0.5)
_ZERO = np.float32(0)


@kernel
def lean(x, owed, gain, step, target):
    """target = x + owed * gain, by half a step of the block's codes at most."""
    limit = _HALF * abs(step)
    for i in range(x.size):
        target[i] = x[i] + min(max(owed * gain[i], -limit), limit)


@kernel
def miss(x, mean, scale, offset, quants):
    """Sum of mean * (x - scale * quant - offset): what a block adds to the mean error that is owed."""
    total = _ZERO
    for i in range(x.size):
        total += mean[i] * (x[i] - (scale * np.float32(quants[i]) + offset))
    return total
