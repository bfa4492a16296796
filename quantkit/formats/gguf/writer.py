"""A planned GGUF file, streamed: its tensors one after another, their rows encoded by a pool of threads, slab by slab.

A large tensor is resident with the next one, packed, so that no thread waits for the file.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import arch, memory, workspace
from quantkit.codecs import gguf_names
from quantkit.codecs.gguf import codecs
from quantkit.errors import WeightError
from quantkit.formats.gguf import layout
from quantkit.kernels.finite import first_nonfinite_row
from quantkit.planning import TargetPlan
from quantkit.values import F32, U8, Artefact, Codec, Progress, Row, Snapshot, Weights

SLAB_WEIGHTS = 1 << 19  # per task: 2 MB as float32, so that a thread works in its own cache
LOOKAHEAD_BYTES = 16 << 20  # of packed tensors: small ones are encoded ahead, so that no thread waits for the file


def write(
    plan: TargetPlan,
    snapshot: Snapshot,
    folder: Path,
    *,
    importance: Mapping[str, F32],
    threads: int,
    progress: Progress,
) -> Artefact:
    """Write `plan` to folder/plan.file, under a temporary name until it is whole.

    importance: HF tensor name -> E[x^2] per column, for the tensors that have it. The bytes depend neither on `threads` nor
    on the folder. Raises WeightError, naming tensor and row, for NaN, infinity and what the type cannot hold; ResourceError
    when the disk is full.
    """
    path = folder / plan.file
    started = time.perf_counter()
    memory.reset_peak()
    pairs = layout.metadata(plan.target, plan.digest, snapshot)
    with workspace.replacing(path) as temporary, ThreadPoolExecutor(threads) as pool:
        writer = layout.open_writer(temporary, pairs, plan.rows, arch.find(snapshot.config).gguf)
        try:
            _write_tensors(writer, plan, snapshot, importance, pool, progress)
        finally:
            writer.close()
    return Artefact(
        target=plan.name,
        path=path,
        nbytes=path.stat().st_size,
        sha256=workspace.digest(path),
        rows=plan.rows,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=memory.peak(),
    )


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor being encoded: its packed rows, in the checkpoint's order, filled by tasks of the pool."""

    row: Row
    packed: U8
    tasks: tuple[Future[None], ...]


def _write_tensors(
    writer: Any,
    plan: TargetPlan,
    snapshot: Snapshot,
    importance: Mapping[str, F32],
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    extra = layout.extra_tensors(snapshot)
    total = sum(row.nbytes for row in plan.rows)
    ahead: deque[_Tensor] = deque()
    written = 0

    def finish() -> None:
        nonlocal written
        tensor = ahead.popleft()
        for task in tensor.tasks:
            task.result()
        writer.write_tensor_data(_in_gguf_order(tensor.row, tensor.packed, snapshot))
        written += tensor.row.nbytes
        progress(f"write {plan.name}", written, total)

    try:
        for row in plan.rows:
            if row.source is None:
                ahead.append(_Tensor(row, extra[row.name].reshape(1, -1).view(np.uint8), ()))
            else:
                ahead.append(_encode(row, snapshot.weights, importance.get(row.source), pool))
            while len(ahead) > 1 and sum(tensor.row.nbytes for tensor in ahead) > LOOKAHEAD_BYTES:
                finish()
        while ahead:
            finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode(row: Row, weights: Weights, importance: F32 | None, pool: ThreadPoolExecutor) -> _Tensor:
    """Start encoding a tensor: one task for every slab of rows. A vector is one row."""
    codec, width = codecs()[row.type], row.shape[-1]
    rows = math.prod(row.shape[:-1])
    packed = np.empty((rows, codec.row_bytes(width)), np.uint8)
    step = max(1, SLAB_WEIGHTS // width)
    slabs = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    tasks = (pool.submit(_encode_slab, row, weights, codec, importance, packed, slab) for slab in slabs)
    return _Tensor(row, packed, tuple(tasks))


def _encode_slab(row: Row, weights: Weights, codec: Codec, importance: F32 | None, packed: U8, slab: tuple[int, int]) -> None:
    start, stop = slab
    assert row.source is not None
    values = weights.read(row.source, *slab) if len(row.shape) > 1 else weights.read(row.source)
    values = np.ascontiguousarray(values.reshape(stop - start, row.shape[-1]))
    bad = first_nonfinite_row(values)
    if bad >= 0:
        raise WeightError(
            f"{row.source}: row {start + bad} holds NaN or infinity. The checkpoint is damaged, or was saved in a type too "
            "narrow for it: fetch it again, or ask its publisher"
        )
    try:
        packed[start:stop] = codec.encode(values, importance)
    except WeightError as error:
        raise WeightError(f"{row.source}, of rows {start} to {stop - 1}: {error}") from error


def _in_gguf_order(row: Row, packed: U8, snapshot: Snapshot) -> U8:
    """The packed rows as GGUF orders them: rotary pairs interleaved where the architecture says so."""
    heads = gguf_names.heads(arch.find(snapshot.config), row.source, snapshot.config) if row.source else 0
    if not heads:
        return packed
    if len(row.shape) == 1:
        return gguf_names.permute(packed.view(np.float32).reshape(-1), heads).view(np.uint8)
    return gguf_names.permute(packed, heads)
