"""The Cholesky factor of H = sum of x x^T over the inputs that a matrix meets; only H's lower triangle is made.

Work is cut into panels of columns of one size, each done by one thread in one order: results are the same whatever the number
of threads. Products run in torch on one thread each (its caller sets that), since BLAS would split them as it likes.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.values import F32, Inputs

PANEL = 256  # columns
_AT_ONCE = 2  # inputs whose columns are put in order, which takes a copy
DAMPING = (1.0, 10.0, 100.0, 1000.0)  # times what was asked for, until the factor exists
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factor:
    """Lower triangular `lower` with lower @ lower.T = the damped H of the columns in `order`, float32.

    order: the column of H that each row of `lower` is of. diagonal: H's own, in H's order, undamped, float32.
    dead: columns that no input ever activated. damping: what was added to the diagonal, relative to its mean.
    """

    lower: F32
    order: NDArray[np.intp]
    diagonal: F32
    dead: NDArray[np.intp]
    damping: float


def factor(inputs: Inputs, damp: float, pool: Executor, *, act_order: bool = True) -> Factor:
    """The Cholesky factor in float64 of H of `inputs`, each float32 (tokens, width), with `damp` times its mean diagonal added.

    act_order: columns by falling diagonal, the greatest last, since codes are chosen from the last column to the first; else
    the natural order reversed. Where the damped matrix is not positive definite, damping rises by DAMPING's steps; the last
    adds a thousand times as much as was asked for. Raises ValueError if even that does not do: inputs are not finite.
    Memory: one float64 matrix; threads of `pool` work on panels, torch must be set to one thread.
    """
    diagonal = np.sum([np.square(inputs[index]).sum(0, dtype=np.float64) for index in range(len(inputs))], 0)
    dead = np.flatnonzero(diagonal == 0)
    order = np.argsort(diagonal, kind="stable") if act_order else np.arange(len(diagonal))[::-1].copy()
    width, mean = len(diagonal), float(diagonal.mean()) or 1.0
    buffer = np.empty(width * width)
    narrow, matrix = buffer.view(np.float32)[: width * width].reshape(width, width), buffer.reshape(width, width)
    added = np.where(np.isin(order, dead), mean, 0.0)  # alone in its row and column: its code is rounded to nearest
    for times in DAMPING:
        narrow[:] = 0
        _accumulate(narrow, inputs, order, pool)
        for row in range(width - 1, -1, -1):  # float64 in the float32's place
            matrix[row] = narrow[row].astype(np.float64)
        matrix[np.diag_indices(width)] = diagonal[order] + added + times * damp * mean
        if _cholesky(matrix, pool):
            for row in range(width):  # and back
                narrow[row] = matrix[row].astype(np.float32)
            return Factor(narrow, order, diagonal.astype(np.float32), dead, times * damp)
    raise ValueError(
        f"no Cholesky factor of H ({width} columns) with {DAMPING[-1] * damp:g} of its mean diagonal {mean:g} added"
    )


def correction(inputs: Inputs, originals: Inputs, factor: Factor, pool: Executor) -> F32:
    """D (width, width), with which W + W D gives for `inputs` what W gave for `originals`, by least squares with the factor's
    damping: D^T = H^-1 sum of x (x0 - x)^T. Inputs of a layer whose layers before are quantised carry their error; this takes
    off what is linear in it (as GPTAQ, Li et al., 2025, and Qronos, Zhang et al., 2025, do).

    inputs, originals: float32 (tokens, width), pair by pair of the same tokens. Memory: two float32 matrices.
    """
    import torch

    width = len(factor.order)
    index, lower = torch.from_numpy(factor.order), torch.from_numpy(factor.lower)
    crossed = torch.zeros((width, width))

    def add(start: int) -> None:
        with torch.no_grad():
            for x, difference in pairs:
                crossed[:, start : start + PANEL].addmm_(x.T, difference[:, start : start + PANEL])

    def solve(start: int) -> None:
        with torch.no_grad():
            part = crossed[:, start : start + PANEL]
            part.copy_(torch.cholesky_solve(part, lower))

    for first in range(0, len(inputs), _AT_ONCE):
        pairs = []
        for at in range(first, min(first + _AT_ONCE, len(inputs))):
            one = torch.from_numpy(inputs[at])[:, index]
            pairs.append((one, torch.from_numpy(originals[at])[:, index] - one))
        list(pool.map(add, range(0, width, PANEL)))
    list(pool.map(solve, range(0, width, PANEL)))
    found: F32 = np.empty((width, width), np.float32)
    found[np.ix_(factor.order, factor.order)] = crossed.numpy().T
    return found


def multiply(weight: F32, matrix: F32, pool: Executor) -> F32:
    """weight (rows, width) @ matrix (width, width), by slabs of rows."""
    import torch

    out, right = np.empty_like(weight), torch.from_numpy(matrix)

    def one(start: int) -> None:
        with torch.no_grad():
            part = torch.from_numpy(np.ascontiguousarray(weight[start : start + PANEL]))
            torch.mm(part, right, out=torch.from_numpy(out[start : start + PANEL]))

    list(pool.map(one, range(0, len(weight), PANEL)))
    return out


def energy(weight: F32, factor: Factor, pool: Executor) -> float:
    """tr(W H W^T), the output's own energy, of weight (rows, width)."""
    import torch

    lower = torch.from_numpy(factor.lower)

    def one(start: int) -> float:
        with torch.no_grad():
            part = torch.from_numpy(np.ascontiguousarray(weight[start : start + PANEL, factor.order]))
            return float(torch.mm(part, lower).double().square().sum())

    return sum(pool.map(one, range(0, len(weight), PANEL))) or 1.0


def _accumulate(hessian: F32, inputs: Inputs, order: NDArray[np.intp], pool: Executor) -> None:
    """Add x^T x, columns in `order`, to the lower triangle of `hessian` for every x; what lies above it within a panel is
    filled too, and means nothing."""
    import torch

    whole, index = torch.from_numpy(hessian), torch.from_numpy(order)

    def add(start: int) -> None:
        stop = start + PANEL
        with torch.no_grad():
            for x in ordered:
                whole[start:, start:stop].addmm_(x[:, start:].T, x[:, start:stop])

    for first in range(0, len(inputs), _AT_ONCE):
        ordered = [torch.from_numpy(inputs[at])[:, index] for at in range(first, min(first + _AT_ONCE, len(inputs)))]
        list(pool.map(add, range(0, len(hessian), PANEL)))


def _cholesky(matrix: F64, pool: Executor) -> bool:
    """Factor the lower triangle in place, panel by panel; False where it is not positive definite. Zeros go above it."""
    import torch

    whole = torch.from_numpy(matrix)
    width = len(matrix)
    with torch.no_grad():
        for start in range(0, width, PANEL):
            stop = min(start + PANEL, width)
            block, failed = torch.linalg.cholesky_ex(whole[start:stop, start:stop])
            if int(failed):
                return False
            whole[start:stop, start:stop] = block
            whole[start:stop, stop:] = 0
            below = range(stop, width, PANEL)

            def solve(row: int, block: Any = block, start: int = start, stop: int = stop) -> None:
                part = whole[row : row + PANEL, start:stop]
                part.copy_(torch.linalg.solve_triangular(block, part.T, upper=False).T)

            def update(row: int, start: int = start, stop: int = stop) -> None:
                lower = whole[row:, start:stop]
                whole[row:, row : row + PANEL].addmm_(lower, lower[:PANEL].T, alpha=-1)

            list(pool.map(solve, below))
            list(pool.map(update, below))
    return True
