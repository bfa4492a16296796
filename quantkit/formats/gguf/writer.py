"""A planned GGUF file, streamed: its tensors one after another, their rows encoded by a pool of threads, slab by slab.

A large tensor is resident with the next one, packed, so that no thread waits for the file.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import arch, memory, workspace
from quantkit.codecs import gguf_tensors
from quantkit.codecs.gguf import codecs
from quantkit.codecs.gguf_tensors import Placement
from quantkit.errors import WeightError
from quantkit.formats.gguf import layout, splitting
from quantkit.kernels.finite import first_nonfinite_row
from quantkit.planning import TargetPlan
from quantkit.values import FLOATS, U8, Artefact, Codec, Importance, Progress, Row, Snapshot, Weights, Written

SLAB_WEIGHTS = 1 << 19  # per task: 2 MB as float32, so that a thread works in its own cache
LOOKAHEAD_BYTES = 16 << 20  # of packed tensors: small ones are encoded ahead, so that no thread waits for the file


def write(
    plan: TargetPlan,
    snapshot: Snapshot,
    folder: Path,
    *,
    importance: Mapping[str, Importance],
    threads: int,
    progress: Progress,
    solved: Mapping[str, Callable[[], U8]] | None = None,
) -> Artefact:
    """Write the files of `plan` into `folder`, under temporary names until all of them are whole.

    importance: GGUF name -> what calibration saw of a tensor's input, for those that have it. solved: GGUF name -> the bytes
    of a tensor whose codes were chosen already, rows in the checkpoint's order. The
    bytes depend neither on `threads` nor on the folder. Raises WeightError, naming tensor and row, for NaN, infinity and
    what the type cannot hold; ResourceError when the disk is full.
    """
    started = time.perf_counter()
    memory.reset_peak()
    pairs = layout.metadata(plan.gguf, plan.digest, snapshot)
    architecture, count = arch.find(snapshot.config).gguf, len(plan.files)
    done = 0
    total = sum(row.nbytes for row in plan.rows)

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(f"write {plan.name}", done, total)

    with ExitStack() as stack:
        for number, file in enumerate(plan.files):
            temporary = stack.enter_context(workspace.replacing(folder / file.name))
            mine = splitting.part_pairs(pairs, number, count, len(plan.rows))
            writer = splitting.open_writer(temporary, mine, file.rows, architecture)
            try:
                _write_tensors(writer, file.rows, snapshot, importance, solved or {}, threads, advance)
            finally:
                writer.close()
    return Artefact(
        target=plan.name,
        files=tuple(_written(folder / file.name) for file in plan.files),
        rows=plan.rows,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=memory.peak(),
    )


def _written(path: Path) -> Written:
    return Written(path, path.stat().st_size, workspace.digest(path))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor being encoded: its packed rows, in the checkpoint's order, filled by tasks of the pool."""

    row: Row
    packed: U8
    placement: Placement | None
    tasks: tuple[Future[None], ...]


def _write_tensors(
    writer: Any,
    rows: Sequence[Row],
    snapshot: Snapshot,
    importance: Mapping[str, Importance],
    solved: Mapping[str, Callable[[], U8]],
    threads: int,
    advance: Callable[[int], None],
) -> None:
    extra, placed = layout.extra_tensors(snapshot), layout.placements(snapshot)
    ahead: deque[_Tensor] = deque()

    def finish() -> None:
        tensor = ahead.popleft()
        for task in tensor.tasks:
            task.result()
        writer.write_tensor_data(_in_gguf_order(tensor))
        advance(tensor.row.nbytes)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows:
                if row.source is None:
                    ahead.append(_Tensor(row, extra[row.name].reshape(1, -1).view(np.uint8), None, ()))
                elif row.name in solved:
                    ahead.append(_Tensor(row, solved[row.name](), placed[row.name], ()))
                else:
                    ahead.append(_encode(row, placed[row.name], snapshot.weights, importance.get(row.name), pool))
                while len(ahead) > 1 and sum(tensor.row.nbytes for tensor in ahead) > LOOKAHEAD_BYTES:
                    finish()
            while ahead:
                finish()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _encode(
    row: Row, placement: Placement, weights: Weights, importance: Importance | None, pool: ThreadPoolExecutor
) -> _Tensor:
    """Start encoding a tensor: one task for every slab of rows, within one matrix of a stack. A vector is one row."""
    codec, width, rows = codecs()[row.type], row.shape[-1], placement.rows
    packed = np.empty((rows, codec.row_bytes(width)), np.uint8)
    whole = gguf_tensors.rows_of(placement)
    step = whole if placement.transposed else max(1, SLAB_WEIGHTS // width)
    slabs = [
        (start, min(start + step, first + whole))
        for first in range(0, rows, whole)
        for start in range(first, first + whole, step)
    ]
    tasks = (
        pool.submit(
            _encode_slab, placement, weights, codec, importance.of(slab[0] // whole) if importance else None, packed, slab
        )
        for slab in slabs
    )
    return _Tensor(row, packed, placement, tuple(tasks))


def _encode_slab(
    placement: Placement, weights: Weights, codec: Codec, importance: Importance | None, packed: U8, slab: tuple[int, int]
) -> None:
    start, stop = slab
    values = gguf_tensors.read(weights, placement, start, stop)
    bad = first_nonfinite_row(values)
    if bad >= 0:
        raise WeightError(
            f"{placement.source}: row {start + bad} holds NaN or infinity. The checkpoint is damaged, or was saved in a type "
            "too narrow for it: fetch it again, or ask its publisher"
        )
    if codec.exact and not placement.transposed and weights.infos[placement.pieces[0].name].dtype not in FLOATS:
        as_it_is = codec.exact(values)
        if as_it_is is not None:
            packed[start:stop] = as_it_is
            return
    try:
        seen = (importance.squares, importance.means) if importance else (None, None)
        packed[start:stop] = codec.encode(values, *seen)
    except WeightError as error:
        raise WeightError(f"{placement.source}, of rows {start} to {stop - 1}: {error}") from error


def encoded(row: Row, snapshot: Snapshot, importance: Importance | None, threads: int) -> U8:
    """What `write` puts into a file for a planned tensor whose codes nobody chose: its packed rows, in GGUF's order."""
    if row.source is None:
        return layout.extra_tensors(snapshot)[row.name].reshape(1, -1).view(np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        tensor = _encode(row, layout.placements(snapshot)[row.name], snapshot.weights, importance, pool)
        for task in tensor.tasks:
            task.result()
    return _in_gguf_order(tensor)


def _in_gguf_order(tensor: _Tensor) -> U8:
    """The packed rows as GGUF orders them; a vector has been read so."""
    if tensor.placement is None or tensor.placement.reorder is None or len(tensor.row.shape) == 1:
        return tensor.packed
    return tensor.placement.reorder(tensor.packed)
