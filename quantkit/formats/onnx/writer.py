"""Writes an ONNX folder: graph, data and what its runtime reads beside them, in the memory of one tensor."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantkit import memory, workspace
from quantkit.errors import WeightError
from quantkit.formats import carried
from quantkit.formats.onnx import blocks, builder, layout
from quantkit.formats.onnx.recorded import Deferred
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
) -> Artefact:
    """Write the plan's folder into `folder`, every file under a temporary name until it is whole. The same bytes on every run.

    importance: of the checkpoint's matrices, by their names. solved: codes that were chosen for them already. Raises
    ResourceError when the disk is full, WeightError for weights that are not finite.
    """
    started = time.perf_counter()
    memory.reset_peak()
    place = folder / Path(plan.file).parent
    place.mkdir(exist_ok=True)
    graph = builder.build(snapshot)
    made = layout.assemble(graph, plan.rows)
    texts = carried.carried(snapshot) | dict(graph.documents)
    written = [_write_whole(place / layout.MODEL, made.graph)]
    with (
        workspace.replacing(place / layout.DATA) as temporary,
        open(temporary, "wb") as file,
        ThreadPoolExecutor(threads) as pool,
    ):
        data = _Data(made, graph.deferred, importance, solved, pool)
        digest = _write_data(file, plan, data, progress)
    written.append(Written(place / layout.DATA, made.nbytes, digest))
    written += [_write_whole(place / name, text.encode()) for name, text in texts.items()]
    return Artefact(plan.name, tuple(written), plan.rows, time.perf_counter() - started, memory.peak())


def _write_whole(path: Path, content: bytes) -> Written:
    with workspace.replacing(path) as temporary:
        temporary.write_bytes(content)
    return Written(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class _Data:
    """What the data file is made of."""

    made: layout.Assembled
    deferred: Mapping[str, Deferred]
    importance: Mapping[str, Importance]
    solved: Solved | None
    pool: Executor


def _write_data(file: BinaryIO, plan: TargetPlan, data: _Data, progress: Progress) -> str:
    """The data file's bytes; returns their sha256."""
    state, at, done, total = hashlib.sha256(), 0, 0, sum(row.nbytes for row in plan.rows)
    for row in plan.rows:
        arrays = _tensors(row, data)
        for stored in data.made.stored:
            if stored.row == row.name:
                values = np.ascontiguousarray(arrays[stored.part]).reshape(-1).view(np.uint8)
                for piece in (b"\0" * (stored.offset - at), values.data):
                    state.update(piece)
                    file.write(piece)
                at = stored.offset + stored.nbytes
        done += row.nbytes
        progress(f"write {plan.name}", done, total)
    return state.hexdigest()


def _tensors(row: Row, data: _Data) -> dict[str, np.ndarray[Any, Any]]:
    """What the file holds of a row: part -> values."""
    settings = blocks.of_type(row.type)
    if settings is not None and (found := _chosen(row, settings, data.solved)) is not None:
        return found
    values = data.deferred[row.name].make()
    if settings is None:
        return {"": values}
    weight: F32 = np.ascontiguousarray(values.T if row.name in data.made.transposed else values)
    if (bad := first_nonfinite_row(weight)) >= 0:
        raise WeightError(f"{row.source}: row {bad} holds NaN or infinity; the checkpoint is damaged")
    seen = next((data.importance[source] for source in row.sources if source in data.importance), None)
    cost = seen.squares if seen is not None and seen.squares.shape == (row.shape[-1],) else None
    return blocks.encode(weight, settings, cost, data.pool)


def _chosen(row: Row, settings: blocks.Settings, solved: Solved | None) -> dict[str, np.ndarray[Any, Any]] | None:
    """A row of which every tensor's codes were chosen already, one below the other."""
    each = [solved(source) for source in row.sources] if solved is not None else []
    if not each or any(part is None for part in each):
        return None
    codes, scales, zeros = (np.concatenate(parts) for parts in zip(*(part for part in each if part), strict=True))
    return blocks.parts(codes, gptq.Grid(settings.bits, settings.block, settings.symmetric, scales, zeros), settings)
