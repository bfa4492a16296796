"""Writes an ONNX folder: graphs, their data and what their runtimes read beside them.

With external data it takes the memory of one tensor; a graph that holds its weights itself is made whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantkit import memory, workspace
from quantkit.errors import WeightError
from quantkit.formats.onnx import assembly, dynamic, graphs, layout, schemes
from quantkit.formats.onnx.blocks import Blocks
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.stored import external, lay_out
from quantkit.kernels import gptq
from quantkit.kernels.finite import first_nonfinite_row
from quantkit.planning import TargetPlan
from quantkit.values import F32, U8, Artefact, Importance, Progress, Row, Snapshot, Written

Solved = Callable[[str], tuple[U8, F32, U8] | None]
"""solved(name): a checkpoint's matrix as codes (rows, width), scales and zeros (rows, groups); None where nobody chose them."""


def write(
    plan: TargetPlan,
    snapshot: Snapshot,
    folder: Path,
    *,
    importance: Mapping[str, Importance],
    solved: Solved | None,
    threads: int,
    progress: Progress,
    made: Sequence[Graph] | None = None,
) -> Artefact:
    """Write the plan's folder into `folder`, every file under a temporary name until it is whole. The same bytes on every run.

    importance: of the checkpoint's matrices, by their names. solved: codes that were chosen for them already. made: the
    graphs, where they are there, with their weights. Raises ResourceError when the disk is full, WeightError for weights that
    are not finite.
    """
    started = time.perf_counter()
    memory.reset_peak()
    memory.return_large_blocks()
    place = folder / Path(plan.file).parts[0]
    written: list[Written] = []
    made = made or graphs.build(snapshot)
    texts = documents(plan, snapshot, made)
    values = [
        _Values(graph, assembly.transposed(graph.model), assembly.sharing(graph.model), importance, solved) for graph in made
    ]
    with ThreadPoolExecutor(threads) as pool:
        written += _write_graphs(plan, folder, values, pool, progress)
    written += [_write_whole(place / name, text.encode()) for name, text in texts.items()]
    return Artefact(plan.name, tuple(written), plan.rows, time.perf_counter() - started, memory.peak())


def documents(plan: TargetPlan, snapshot: Snapshot, made: Sequence[Graph]) -> dict[str, str]:
    """The folder's text files: name -> text."""
    return layout.documents(plan.onnx, snapshot) | {name: text for graph in made for name, text in graph.documents.items()}


@dataclass(frozen=True, slots=True)
class _Values:
    """What a graph's tensors are made of. transposed: those that it multiplies by, as (width, rows). leaders: of
    `assembly.sharing`."""

    graph: Graph
    transposed: frozenset[str]
    leaders: Mapping[str, str]
    importance: Mapping[str, Importance]
    solved: Solved | None
    smoothings: dict[str, F32] = field(default_factory=dict)  # by their rows' names

    def weight(self, name: str) -> F32:
        """A matrix of the graph, (rows, width)."""
        made = self.graph.deferred[name].make()
        return np.ascontiguousarray(made.T if name in self.transposed else made)

    def seen(self, name: str) -> F32 | None:
        """E[x^2] of what a matrix of the graph meets, where calibration saw it."""
        for source in self.graph.deferred[name].sources:
            for known in (source, source.partition(".")[2]):
                if known in self.importance:
                    return self.importance[known].squares
        return None


def _write_graphs(
    plan: TargetPlan, folder: Path, values: Sequence[_Values], pool: Executor, progress: Progress
) -> list[Written]:
    graphs, rows, stored = [each.graph for each in values], plan.rows, lay_out(plan.rows)
    parts = layout.files(plan.onnx, graphs)
    paths = [folder / file.name for file in plan.files[: len(parts)]]
    if layout.inline(plan.onnx, graphs, stored):
        import onnx_ir as ir

        held: dict[str, np.ndarray[Any, Any]] = {}
        for row in rows:
            held |= {schemes.name(row.name, part): array for part, array in _tensors(row, values, pool).items()}
        contents = [layout.assemble(part, rows, lambda each: ir.Tensor(held[each.name], name=each.name)) for part in parts]
        return [_write_whole(path, content) for path, content in zip(paths, contents, strict=True)]
    data = folder / plan.files[-1].name
    data.parent.mkdir(parents=True, exist_ok=True)
    hold = external(data.name, stored)
    contents = [layout.assemble(part, rows, hold) for part in parts]
    with workspace.replacing(data) as temporary, open(temporary, "wb") as file:
        digest = _write_data(file, rows, values, pool, lambda done, total: progress(f"write {plan.name}", done, total))
    written = [_write_whole(path, content) for path, content in zip(paths, contents, strict=True)]
    return [*written, Written(data, stored[-1].end, digest)]


def _write_whole(path: Path, content: bytes) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    with workspace.replacing(path) as temporary:
        temporary.write_bytes(content)
    return Written(path, len(content), hashlib.sha256(content).hexdigest())


def _write_data(
    file: BinaryIO, rows: tuple[Row, ...], values: Sequence[_Values], pool: Executor, report: Callable[[int, int], None]
) -> str:
    """The data file's bytes; returns their sha256."""
    state, at, done, total = hashlib.sha256(), 0, 0, sum(row.nbytes for row in rows)
    stored = iter(lay_out(rows))
    for row in rows:
        for array in _tensors(row, values, pool).values():
            each = next(stored)
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for piece in (b"\0" * (each.offset - at), content.data):
                state.update(piece)
                file.write(piece)
            at = each.end
        done += row.nbytes
        report(done, total)
    return state.hexdigest()


def _tensors(row: Row, graphs: Sequence[_Values], pool: Executor) -> dict[str, np.ndarray[Any, Any]]:
    """What the file holds of a row: part -> values, in the order of `Scheme.parts`; of the first graph that has it."""
    scheme = schemes.of_type(row.type)
    values = next(each for each in graphs if layout.holds(each.graph, row))
    if isinstance(scheme, Blocks) and (found := _chosen(row, scheme, values.solved)) is not None:
        return found
    if row.name not in values.graph.deferred:
        return {"": _smoothing(row, values)}
    made = values.graph.deferred[row.name].make()
    turned = scheme is not None and row.name in values.transposed
    weight: F32 = np.ascontiguousarray(made.T if turned else made)
    if (bad := first_nonfinite_row(weight.reshape(len(weight), -1))) >= 0:
        raise WeightError(f"{row.source or row.name}: row {bad} holds NaN or infinity; the checkpoint is damaged")
    if scheme is None:
        return {"": weight}
    if isinstance(scheme, Blocks):
        cost = values.seen(row.name)
        return scheme.encode(weight, cost if cost is not None and cost.shape == row.shape[-1:] else None, pool)
    leader = values.leaders.get(row.name)
    return scheme.encode(weight, values.smoothings[f"{leader}{schemes.SMOOTHING}"] if scheme.smoothed else None)


def _smoothing(row: Row, values: _Values) -> F32:
    """The vector that evens out an input, of all the matrices that meet it."""
    leader = row.name.removesuffix(schemes.SMOOTHING)
    squares = values.seen(leader)
    if squares is None:
        raise WeightError(f"{leader}: calibration saw none of its inputs; leave imatrix out, or skip it by a rule")
    peers = [values.weight(name) for name, first in values.leaders.items() if first == leader]
    values.smoothings[row.name] = dynamic.smoothing(peers, squares)
    return values.smoothings[row.name]


def _chosen(row: Row, scheme: Blocks, solved: Solved | None) -> dict[str, np.ndarray[Any, Any]] | None:
    """A row of which every tensor's codes were chosen already, one below the other."""
    each = [solved(source) for source in row.sources] if solved is not None else []
    if not each or any(part is None for part in each):
        return None
    codes, scales, zeros = (np.concatenate(parts) for parts in zip(*(part for part in each if part), strict=True))
    return scheme.pack(codes, gptq.Grid(scheme.bits, scheme.block, scheme.symmetric, scales, zeros))
