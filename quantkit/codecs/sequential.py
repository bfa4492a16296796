"""Rows of a GGUF type with scales and codes against H: block by block from the last, each making up for what is done.

With H = L L^T (see kernels/gptq.py), when the blocks after a block B are done and those before it are free to make up for it,
the error that B adds is |T^T (t - q)|^2, where T is L's triangle of B's columns and t, the compensated weights, is what B
would have to be for no error at all:

    t = w + e L_later,B T^-1        e: the errors of the columns that are done.

So B is encoded as t by the type's own search with diag(T T^T) as what columns cost; its codes are chosen again column by
column; and its super-scales d and dmin are fitted to these codes by least squares under T T^T. The same is done with the
scales that a search found for w itself, which are better where w lies on a grid already; every row keeps what errs less.
Only then are the columns before it seen, whose compensation knows the error that the stored halves really leave. Blocks stay
together in the order of columns, the costliest block last, within a block the costliest column last.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from quantkit.codecs import codes as stored_codes
from quantkit.codecs.gguf import codecs
from quantkit.kernels import gptq
from quantkit.kernels.hessian import F64, PANEL, Factor
from quantkit.values import F32, U8

SLAB = 256  # rows that a thread works on
BLOCKS = (256, 32)  # columns of the types' blocks, for hessian.factor


@dataclass(frozen=True, slots=True)
class _Block:
    """A block's columns at [first, stop) of the factor's order: which block of the row it is, where each column stands in it,
    and T. root: T with its rows as the columns stand in the block; costs: diag(T T^T) likewise."""

    first: int
    stop: int
    number: int
    places: NDArray[np.intp]
    triangle: F32
    root: F32
    costs: F32


def solve(kind: str, weight: F32, searched: U8, factor: Factor, pool: Executor) -> tuple[U8, float]:
    """Encoded rows, uint8 (rows, row bytes), of weight, float32 (rows, width), and the output's error tr(E H E^T) with the
    damped H.

    searched: the same rows as the type's own search encodes them. factor: of what the matrix meets, its columns in BLOCKS (see
    hessian.factor). Threads of `pool` take slabs of rows: torch must be set to one thread.
    """
    codec = codecs()[kind]
    blocks = _blocks(factor, codec.block)
    own = searched.reshape(len(weight), weight.shape[1] // codec.block, codec.block_bytes)
    data = np.empty_like(own)

    def one(start: int) -> float:
        part = slice(start, start + SLAB)
        return _slab(kind, np.ascontiguousarray(weight[part][:, factor.order]), own[part], factor, blocks, data[part])

    losses = pool.map(one, range(0, len(weight), SLAB))
    return data.reshape(len(weight), -1), float(sum(losses))


def _blocks(factor: Factor, size: int) -> list[_Block]:
    """Blocks of `size` columns, last first. ValueError where the order takes them apart."""
    found = []
    for first in reversed(range(0, len(factor.order), size)):
        stop, at = first + size, first // PANEL * PANEL
        numbers, places = np.divmod(factor.order[first:stop], size)
        if (numbers != numbers[0]).any():
            raise ValueError(f"columns {first} to {stop} of the factor's order are of several blocks of {size}")
        panel = factor.panels[first // PANEL]
        triangle = np.ascontiguousarray(panel[first - at : stop - at, first - at : stop - at])
        root = np.empty_like(triangle)
        root[places] = triangle
        found.append(_Block(first, stop, int(numbers[0]), places, triangle, root, np.square(root).sum(1)))
    return found


def _slab(kind: str, ordered: F32, own: U8, factor: Factor, blocks: list[_Block], data: U8) -> float:
    """Encode rows whose columns are in the factor's order into `data` (rows, blocks, block's bytes); the output's error. own:
    what they are by themselves, as `data`."""
    import torch

    errors, loss = np.zeros_like(ordered), 0.0
    done = torch.from_numpy(errors)
    for number, together in groupby(blocks, lambda block: block.first // PANEL):
        at, panel = number * PANEL, torch.from_numpy(factor.panels[number])
        below = min(at + PANEL, ordered.shape[1])
        carried = torch.mm(done[:, below:], panel[below - at :])
        for block in together:
            here = slice(block.first - at, block.stop - at)
            total = carried[:, here] + torch.mm(done[:, block.stop : below], panel[block.stop - at : below - at, here])
            shift = torch.linalg.solve_triangular(torch.from_numpy(block.triangle), total, upper=False, left=False)
            weights = ordered[:, block.first : block.stop]
            data[:, block.number], values, lost = _choose(kind, weights + shift.numpy(), own[:, block.number], block)
            errors[:, block.first : block.stop] = weights - values
            loss += lost
    return loss


def _choose(kind: str, target: F32, own: U8, block: _Block) -> tuple[U8, F32, float]:
    """The bytes of one block of every row, what they stand for (rows, block), columns in the factor's order, and the error."""
    natural = np.empty_like(target)
    natural[:, block.places] = target
    searched = codecs()[kind].encode(natural, block.costs)
    (data, values, losses), (others, theirs, beside) = (
        _codes(kind, target, natural, each, block) for each in (searched, np.ascontiguousarray(own))
    )
    better = (beside < losses)[:, None]
    return np.where(better, others, data), np.where(better, theirs, values), float(np.minimum(losses, beside).sum())


def _codes(kind: str, target: F32, natural: F32, scaled: U8, block: _Block) -> tuple[U8, F32, F64]:
    """The same with the scales of `scaled`, and each row's error. natural: target, its columns as they stand in the block."""
    import torch

    triangle, grid = block.triangle, stored_codes.lattice(kind, scaled)
    codes, placed = np.empty(target.shape, np.uint8), np.empty(target.shape, np.uint8)
    errors, losses = np.zeros_like(target), np.zeros(len(target))
    groups = (block.places // grid.group).astype(np.int64)
    upper, nothing = np.ascontiguousarray(triangle.T), np.zeros_like(target)
    block_of = (target, nothing, upper, groups, grid.steps, grid.offsets, grid.levels, gptq.middles(grid.levels))
    gptq.round_block(*block_of, errors, codes, losses)
    placed[:, block.places] = codes
    data = stored_codes.refit(kind, stored_codes.with_codes(kind, scaled, placed), natural, block.root)
    values = codecs()[kind].decode(data)[:, block.places]
    left = torch.mm(torch.from_numpy(target - values), torch.from_numpy(triangle))
    return data, values, left.double().square().sum(1).numpy()
