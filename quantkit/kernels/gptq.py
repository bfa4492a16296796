"""GPTQ: codes chosen column by column, so that each makes up for the error of those before it.

With H = L L^T, the output's error of a row is |L^T (w - q)|^2. Its last entry has the last column alone, so that nearest
rounding is best there; given that code, the entry before it has one unknown again, and so on: every code is rounded from

    c_i = w_i + sum over j > i of L_ji (w_j - q_j) / L_ii,

and the error is the sum of L_ii^2 (c_i - q_i)^2. This is GPTQ (Frantar et al., 2022) with the columns reversed and without an
inverse: Babai's nearest plane algorithm (Chen et al., 2025). Act-order puts the columns of greatest activation last.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.errors import InputError
from quantkit.kernels import grid
from quantkit.kernels.hessian import PANEL, Factor
from quantkit.kernels.jit import kernel
from quantkit.values import F32, U8

BITS = (2, 3, 4, 8)
BLOCK = 128  # columns between products with those that are done; divides hessian.PANEL
SLAB = 64  # rows that a thread works on

_ZERO = np.float32(0)
_ONE = np.float32(1)
_SYMMETRIC = {
    2: np.linspace(0.35, 1.1, 16),
    3: np.linspace(0.45, 1.1, 14),
    4: np.linspace(0.55, 1.1, 14),
    8: np.linspace(0.9, 1.05, 6),
}
_ASYMMETRIC = {2: np.linspace(0.4, 1, 7), 3: np.linspace(0.5, 1, 6), 4: np.linspace(0.6, 1, 5), 8: np.linspace(0.92, 1, 2)}
"""By bits: the factors by which the search draws the ends of a group in."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What codes stand for: scale * (code - zero). scales: float32 (rows, groups), each a float16; zeros: uint8, likewise."""

    bits: int
    group: int  # columns, in the matrix's own order
    symmetric: bool
    scales: F32
    zeros: U8


@dataclass(frozen=True, slots=True)
class Solved:
    """codes: uint8 (rows, width). loss: the error of the output, tr(E H E^T) with the damped H."""

    grid: Grid
    codes: U8
    loss: float

    def weights(self, start: int = 0, stop: int | None = None) -> F32:
        """What the codes of rows [start, stop) stand for, float32 (n, width)."""
        part = slice(start, stop)
        found = self.codes[part].astype(np.float32)
        grouped = found.reshape(len(found), -1, self.grid.group)
        grouped -= self.grid.zeros[part, :, None]
        grouped *= self.grid.scales[part, :, None]
        return found


def limit(bits: int) -> float:
    """The greatest magnitude that codes of so many bits stand for on either kind of grid: scales are float16."""
    greatest = float(np.finfo(np.float16).max)
    return greatest * float(2 ** (bits - 1) - 1)


def check_group(width: int, group: int) -> int:
    """Columns of a group, of -1 all. Raises InputError where `group` does not divide the width."""
    size = width if group == -1 else group
    if size < 1 or width % size:
        fit = ", ".join(str(each) for each in (32, 64, 128) if width % each == 0)
        raise InputError(f"group: {group} does not divide the {width} columns; these do: {fit + ', ' if fit else ''}-1 (all)")
    return size


def fit(weight: F32, importance: F32, *, bits: int, group: int, symmetric: bool, pool: Executor, search: bool = True) -> Grid:
    """The grid of every group of columns of weight (rows, width); importance: (width,) what an error in a column costs.

    search: least weighted error, else least and greatest weight. Raises InputError as `check_group` does.
    """
    size = check_group(weight.shape[1], group)
    scales = np.empty((len(weight), weight.shape[1] // size), np.float32)
    zeros = np.empty_like(scales)
    top = np.float32(2**bits - 1)
    shrinks = (_SYMMETRIC if symmetric else _ASYMMETRIC)[bits].astype(np.float32)

    def one(start: int) -> None:
        part = slice(start, start + SLAB)
        if search:
            grid.search(weight[part], importance, size, top, shrinks, symmetric, scales[part], zeros[part])
        else:
            grid.extremes(weight[part], size, top, symmetric, scales[part], zeros[part])

    _over_slabs(pool, len(weight), one)
    return Grid(bits, size, symmetric, scales, zeros.astype(np.uint8))


def solve(weight: F32, chosen: Grid, factor: Factor, pool: Executor) -> Solved:
    """Codes of weight (rows, width) on a grid, by the factor of its inputs' H.

    Threads of `pool` take slabs of rows: torch must be set to one thread.
    """
    import torch

    codes = np.empty(weight.shape, np.uint8)
    losses = np.zeros(len(weight), np.float64)
    groups = (factor.order // chosen.group).astype(np.int64)
    offsets = -chosen.scales * chosen.zeros
    levels = np.arange(2**chosen.bits, dtype=np.float32)
    between, width = middles(levels), weight.shape[1]

    def one(start: int) -> None:
        part = slice(start, start + SLAB)
        ordered = np.ascontiguousarray(weight[part][:, factor.order])
        errors, found = np.zeros_like(ordered), np.empty(ordered.shape, np.uint8)
        for first in reversed(range(0, width, BLOCK)):
            stop = min(first + BLOCK, width)
            carried = np.zeros((len(ordered), stop - first), np.float32)
            panel, at = factor.panels[first // PANEL], first // PANEL * PANEL
            lower = panel[:, first - at : stop - at]
            if stop < width:
                below = torch.from_numpy(lower)[stop - at :]
                torch.mm(torch.from_numpy(errors)[:, stop:], below, out=torch.from_numpy(carried))
            triangle = np.ascontiguousarray(lower[first - at : stop - at].T)
            block = (ordered[:, first:stop], carried, triangle, groups[first:stop], chosen.scales[part], offsets[part])
            round_block(*block, levels, between, errors[:, first:stop], found[:, first:stop], losses[part])
        back = np.empty_like(found)
        back[:, factor.order] = found
        codes[part] = back

    _over_slabs(pool, len(weight), one)
    return Solved(chosen, codes, float(losses.sum()))


def middles(levels: F32) -> F32:
    """What lies between levels, ascending, for `round_block`; empty where they are 0, 1, 2 ..."""
    even = np.array_equal(levels, np.arange(len(levels)))
    return np.zeros(0, np.float32) if even else (levels[1:] + levels[:-1]) / np.float32(2)


def nearest(weight: F32, chosen: Grid) -> U8:
    """Codes by rounding to nearest, uint8 (rows, width): what `solve` is compared with."""
    found = np.empty(weight.shape, np.uint8)
    for start in range(0, len(weight), SLAB):
        part = slice(start, start + SLAB)
        codes = weight[part].reshape(len(found[part]), -1, chosen.group) / chosen.scales[part, :, None]
        codes = np.clip(np.rint(codes) + chosen.zeros[part, :, None], 0, 2**chosen.bits - 1)
        found[part] = codes.reshape(found[part].shape)
    return found


def _over_slabs(pool: Executor, rows: int, one: Callable[[int], Any]) -> None:
    list(pool.map(one, range(0, rows, SLAB)))


@kernel
def round_block(weight, carried, upper, groups, steps, offsets, levels, middles, errors, codes, losses):
    """Choose the codes of a block of columns from its last to its first, all float32 but uint8 codes.

    weight, carried, errors, codes: (rows, n), carried the sum of L_ji e_j over the columns that are done; upper: L^T's block
    (n, n); groups: (n,) int64, the group of each column; steps, offsets: (rows, groups), a step of 0 has one value for all
    codes; levels: (codes,), and what lies between them in `middles`, empty where they are 0, 1, 2 ...; losses: float64 (rows,),
    added to.
    """
    count, top = weight.shape[1], np.float32(levels.size - 1)
    for row in range(weight.shape[0]):
        loss = np.float64(0)
        for back in range(count):
            i = count - 1 - back
            later, done = upper[i, i + 1 :], errors[row, i + 1 :]
            total = carried[row, i]
            for j in range(later.size):
                total += later[j] * done[j]
            ideal = weight[row, i] + total / upper[i, i]
            step, offset = steps[row, groups[i]], offsets[row, groups[i]]
            place = (ideal - offset) / step if step != _ZERO else _ZERO
            code = 0
            if middles.size == 0:
                code = int(min(max(np.rint(place), _ZERO), top))
            for middle in middles:
                code += middle < place
            value = offset + step * levels[code]
            codes[row, i] = np.uint8(code)
            errors[row, i] = weight[row, i] - value
            missed = upper[i, i] * (ideal - value)
            loss += np.float64(missed * missed)
        losses[row] += loss
