"""The Cholesky factor of H = sum of x x^T over the inputs that a matrix meets; only H's lower triangle is made.

Work is cut into panels of columns of one size, each done by one thread in one order: results are the same whatever the number
of threads. Products run in torch on one thread each (its caller sets that), since BLAS would split them as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import WeightError
from quantkit.values import F32, Inputs

if TYPE_CHECKING:
    import torch

PANEL = 256  # columns
_AT_ONCE = 2  # inputs whose columns are put in order, which takes a copy
DAMPING = (1.0, 10.0, 100.0, 1000.0)  # times what was asked for, until the factor exists
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factor:
    """Lower triangular L with L @ L.T = the damped H of the columns in `order`.

    panels: L, PANEL columns at a time, of each the rows from its first column on, float32: what lies above takes no memory.
    order: the column of H that each row of L is of. diagonal: H's own, in H's order, undamped, float32; sums: of the columns of
    the inputs.
    dead: columns that no input ever activated. damping: what was added to the diagonal, relative to its mean.
    """

    panels: tuple[F32, ...]
    order: NDArray[np.intp]
    diagonal: F32
    sums: F32
    dead: NDArray[np.intp]
    damping: float

    def lower(self) -> F32:
        """L whole (width, width)."""
        found = np.zeros((len(self.order), len(self.order)), np.float32)
        for start, panel in zip(range(0, len(self.order), PANEL), self.panels, strict=True):
            found[start:, start : start + PANEL] = panel
        return found


def factor(inputs: Inputs, damp: float, pool: Executor, *, act_order: bool = True, blocks: Sequence[int] = ()) -> Factor:
    """The Cholesky factor in float64 of H of `inputs`, each float32 (tokens, width), with `damp` times its mean diagonal added.

    act_order: columns by falling diagonal, the greatest last, since codes are chosen from the last column to the first; else
    the natural order reversed. blocks: sizes of runs of columns that stay together, falling, each dividing the one before; runs
    are ordered by their sums. Where the damped matrix is not positive definite, damping rises by DAMPING's steps; the last
    adds a thousand times as much as was asked for. Raises WeightError where inputs are not finite, or if that does not do.
    Memory: half a float64 matrix; threads of `pool` work on panels, torch must be set to one thread.
    """
    diagonal, sums = np.sum(list(pool.map(lambda index: _moments(inputs[index]), range(len(inputs)))), 0)
    if not np.isfinite(diagonal).all():
        count = len(diagonal) - int(np.isfinite(diagonal).sum())
        raise WeightError(f"{count} of {len(diagonal)} columns of its inputs hold NaN or infinity on the calibration text")
    dead = np.flatnonzero(diagonal == 0)
    order = _rising(diagonal, blocks) if act_order else np.arange(len(diagonal))[::-1].copy()
    mean = float(diagonal.mean()) or 1.0
    added = np.where(np.isin(order, dead), mean, 0.0)  # alone in its row and column: its code is rounded to nearest
    for times in DAMPING:
        panels = _double(_accumulate(inputs, order, pool), diagonal[order] + added + times * damp * mean)
        if _cholesky(panels, pool):
            moments = diagonal.astype(np.float32), sums.astype(np.float32)
            return Factor(_single(panels), order, *moments, dead, times * damp)
    raise WeightError(
        f"no Cholesky factor of H ({len(order)} columns) with {DAMPING[-1] * damp:g} of its mean diagonal {mean:g} added"
    )


def _moments(x: F32) -> F64:
    """Squares and values of x (tokens, width), summed by column: (2, width)."""
    return np.stack([np.square(x).sum(0, dtype=np.float64), x.sum(0, dtype=np.float64)])


def _rising(diagonal: F64, blocks: Sequence[int]) -> NDArray[np.intp]:
    """Columns by rising diagonal, those of a block together, the last block short where the columns end."""
    columns = np.arange(len(diagonal))
    keys: list[NDArray[Any]] = [diagonal]  # the last counts first
    for size in reversed(blocks):
        number = columns // size
        keys += [number, np.bincount(number, diagonal)[number]]
    return np.lexsort(keys)


def correction(inputs: Inputs, originals: Inputs, factor: Factor, pool: Executor) -> F32:
    """D (width, width), with which W + W D gives for `inputs` what W gave for `originals`, by least squares with the factor's
    damping: D^T = H^-1 sum of x (x0 - x)^T. Inputs of a layer whose layers before are quantised carry their error; this takes
    off what is linear in it (as GPTAQ, Li et al., 2025, and Qronos, Zhang et al., 2025, do).

    inputs, originals: float32 (tokens, width), pair by pair of the same tokens. Memory: two float32 matrices more.
    """
    import torch

    width = len(factor.order)
    index, lower = torch.from_numpy(factor.order), torch.from_numpy(factor.lower())
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
            one = torch.from_numpy(inputs[at]).index_select(1, index)
            pairs.append((one, torch.from_numpy(originals[at]).index_select(1, index) - one))
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

    def one(start: int) -> float:
        total = 0.0
        with torch.no_grad():
            part = torch.from_numpy(np.ascontiguousarray(weight[start : start + PANEL, factor.order]))
            for first, panel in zip(range(0, len(factor.order), PANEL), factor.panels, strict=True):
                total += float(torch.mm(part[:, first:], torch.from_numpy(panel)).double().square().sum())
        return total

    return sum(pool.map(one, range(0, len(weight), PANEL))) or 1.0


def outputs(weights: Sequence[F32], inputs: Inputs, pool: Executor) -> list[float]:
    """Of each of `weights` (rows, width) the energy of what it makes of `inputs`: the sum of |W x|^2."""
    import torch

    def one(index: int) -> list[float]:
        with torch.no_grad():
            x = torch.from_numpy(inputs[index])
            return [float(torch.linalg.vector_norm(torch.mm(x, torch.from_numpy(weight).T))) ** 2 for weight in weights]

    return [float(sum(of)) for of in zip(*pool.map(one, range(len(inputs))), strict=True)] or [0.0] * len(weights)


def _accumulate(inputs: Inputs, order: NDArray[np.intp], pool: Executor) -> list[torch.Tensor]:
    """The panels of the sum of x^T x, columns in `order`, float32; what lies above the diagonal within one means nothing."""
    import torch

    index = torch.from_numpy(order)
    panels = [torch.zeros((len(order) - start, min(PANEL, len(order) - start))) for start in range(0, len(order), PANEL)]

    def add(number: int) -> None:
        start = number * PANEL
        with torch.no_grad():
            for x in ordered:
                panels[number].addmm_(x[:, start:].T, x[:, start : start + PANEL])

    def put_in_order(at: int) -> torch.Tensor:
        return torch.from_numpy(inputs[at]).index_select(1, index)

    for first in range(0, len(inputs), _AT_ONCE):
        ordered = list(pool.map(put_in_order, range(first, min(first + _AT_ONCE, len(inputs)))))
        list(pool.map(add, range(len(panels))))
    return panels


def _double(panels: list[torch.Tensor], diagonal: F64) -> list[torch.Tensor]:
    """Panels in float64 with this diagonal; those given are let go one by one."""
    found: list[torch.Tensor] = []
    while panels:
        found.append(panels.pop().double())
    found.reverse()
    for number, panel in enumerate(found):
        here = diagonal[number * PANEL : number * PANEL + panel.shape[1]]
        panel.numpy()[np.diag_indices(len(here))] = here
    return found


def _single(panels: list[torch.Tensor]) -> tuple[F32, ...]:
    """Panels in float32; those given are let go one by one."""
    found: list[F32] = []
    while panels:
        found.append(panels.pop().float().numpy())
    return tuple(reversed(found))


def _cholesky(panels: list[torch.Tensor], pool: Executor) -> bool:
    """Factor in place, panel by panel; False where H is not positive definite. Zeros go above the diagonal."""
    import torch

    with torch.no_grad():
        for number, panel in enumerate(panels):
            width = panel.shape[1]
            block, failed = torch.linalg.cholesky_ex(panel[:width])
            if int(failed):
                return False
            panel[:width] = block

            def solve(row: int, panel: torch.Tensor = panel, block: torch.Tensor = block) -> None:
                part = panel[row : row + PANEL]
                part.copy_(torch.linalg.solve_triangular(block, part.T, upper=False).T)

            def update(later: int, panel: torch.Tensor = panel, number: int = number) -> None:
                lower = panel[(later - number) * PANEL :]
                panels[later].addmm_(lower, lower[:PANEL].T, alpha=-1)

            list(pool.map(solve, range(width, len(panel), PANEL)))
            list(pool.map(update, range(number + 1, len(panels))))
    return True
