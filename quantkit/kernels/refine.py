"""GPTQ's codes once more: each column's code is the best given all others', column after column, until a pass gains little.

The output's error of a row, |L^T e|^2 with e = w - q, has the gradient G = H e. A code moves by the whole number of steps that
takes most away from it; G follows by a multiple of H's column. H is L L^T, made block by block of columns.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from quantkit.kernels.gptq import SLAB, Solved
from quantkit.kernels.hessian import Factor
from quantkit.kernels.jit import kernel
from quantkit.values import F32

PASSES = 3
BLOCK = 128

_ZERO = np.float32(0)


def refine(weight: F32, solved: Solved, factor: Factor, pool: Executor) -> Solved:
    """Codes of weight (rows, width) that lose no more than those of `solved`. Threads of `pool` take slabs of rows: torch must
    be set to one thread."""
    import torch

    lower, order, grid = torch.from_numpy(factor.lower), factor.order, solved.grid
    width = weight.shape[1]
    hessian = torch.empty((width, width))
    starts = range(0, width, BLOCK)
    list(pool.map(lambda at: torch.mm(lower, lower[at : at + BLOCK].T, out=hessian[:, at : at + BLOCK]), starts))
    whole = hessian.numpy()
    codes, losses = np.empty_like(solved.codes), np.zeros(len(weight))
    groups = (order // grid.group).astype(np.int64)
    top = np.float32(2**grid.bits - 1)

    def one(start: int) -> None:
        part = slice(start, start + SLAB)
        found = np.ascontiguousarray(solved.codes[part][:, order])
        errors = np.ascontiguousarray((weight[part] - solved.weights(start, start + SLAB))[:, order])
        pulls = torch.mm(torch.from_numpy(errors), hessian).numpy()
        for _ in range(PASSES):
            for at in starts:
                stop = min(at + BLOCK, width)
                moved = np.zeros((len(found), stop - at), np.float32)
                square = np.ascontiguousarray(whole[at:stop, at:stop])
                block = (square, groups[at:stop], grid.scales[part], top, errors[:, at:stop], found[:, at:stop])
                settle(*block, pulls[:, at:stop], moved)
                if moved.any():
                    torch.from_numpy(pulls).addmm_(torch.from_numpy(moved), hessian[at:stop])
        losses[part] = (errors.astype(np.float64) * torch.mm(torch.from_numpy(errors), hessian).numpy()).sum(1)
        back = np.empty_like(found)
        back[:, order] = found
        codes[part] = back

    list(pool.map(one, range(0, len(weight), SLAB)))
    return replace(solved, codes=codes, loss=float(losses.sum()))


@kernel
def settle(square, groups, scales, top, errors, codes, pulls, moved):
    """Move the codes of a block of columns, from the first to the last, as far as each lowers the error.

    square: H's block (n, n); errors, pulls, moved: (rows, n), pulls H e at the beginning, moved by how much e changed.
    """
    count = square.shape[0]
    for row in range(errors.shape[0]):
        for i in range(count):
            pull = pulls[row, i]
            for j in range(count):
                pull += moved[row, j] * square[i, j]
            scale = scales[row, groups[i]]
            steps = np.rint(pull / (square[i, i] * scale))
            code = np.float32(codes[row, i])
            to = min(max(code + steps, _ZERO), top)
            if to != code:
                change = (code - to) * scale
                codes[row, i] = np.uint8(to)
                errors[row, i] += change
                moved[row, i] += change
