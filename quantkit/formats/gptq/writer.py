"""A GPTQ checkpoint's folder: solved matrices packed, everything else as the source has it, streamed into shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantkit import memory, workspace
from quantkit.codecs import compressed_tensors, gptq
from quantkit.formats import carried
from quantkit.formats.gptq import layout, shards
from quantkit.kernels import halves
from quantkit.kernels.gptq import Solved
from quantkit.planning import TargetPlan
from quantkit.targets import GptqTarget
from quantkit.values import F32, Artefact, Progress, Row, Snapshot, Weights, Written

_SLAB = 1 << 22  # weights read at once

Packed = Callable[[str], Mapping[str, NDArray[Any]]]
"""packed(row name) -> the arrays that hold a quantised row, by tensor name."""


def pack(target: GptqTarget, name: str, solved: Solved) -> dict[str, NDArray[Any]]:
    """A solved matrix (out, in) as the tensors of the file: layout.tensors' names, shapes and types."""
    stem, grid, bits = name.removesuffix(".weight"), solved.grid, solved.grid.bits
    out, width = solved.codes.shape
    scales = grid.scales.astype(np.float16)
    if target.layout == "gptq":
        return {
            f"{stem}.qweight": gptq.pack_codes(solved.codes, bits),
            f"{stem}.qzeros": gptq.pack_zeros(grid.zeros, bits, target.stored_version),
            f"{stem}.scales": np.ascontiguousarray(scales.T),
            f"{stem}.g_idx": (np.arange(width) // grid.group).astype(np.int32),
        }
    parts: dict[str, NDArray[Any]] = {
        f"{stem}.weight_packed": compressed_tensors.pack_codes(solved.codes, bits),
        f"{stem}.weight_scale": scales,
        f"{stem}.weight_shape": np.array([out, width], np.int64),
    }
    if not target.sym:
        parts[f"{stem}.weight_zero_point"] = compressed_tensors.pack_zeros(grid.zeros, bits)
    return parts


def write(
    plan: TargetPlan, snapshot: Snapshot, folder: Path, packed: Packed, sources: Mapping[str, Any], progress: Progress
) -> Artefact:
    """Write the plan's folder into `folder`, every file under a temporary name until it is whole. The same bytes on every run.

    sources: for the configuration's `meta`. Raises ResourceError when the disk is full.
    """
    assert isinstance(plan.target, GptqTarget)
    started = time.perf_counter()
    memory.reset_peak()
    place = folder / Path(plan.file).parent
    place.mkdir(exist_ok=True)
    rows = {row.name: row for row in plan.rows}
    parts = arranged(plan)
    total, done = sum(row.nbytes for row in plan.rows), 0
    written = []
    for shard in parts:
        with workspace.replacing(place / shard.name) as temporary, open(temporary, "wb") as file:
            hashed = _Hashed(file)
            hashed.write(shards.header(shard.tensors))
            for name in dict.fromkeys(row.name for row in plan.rows if row.name in shard.rows):
                _write_row(hashed, rows[name], plan.target, snapshot.weights, packed)
                done += rows[name].nbytes
                progress(f"write {plan.name}", done, total)
        written.append(Written(place / shard.name, shard.nbytes, hashed.state.hexdigest()))
    for file_name, text in documents(plan, snapshot, parts, sources).items():
        with workspace.replacing(place / file_name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(Written(place / file_name, len(text.encode()), hashlib.sha256(text.encode()).hexdigest()))
    return Artefact(plan.name, tuple(written), plan.rows, time.perf_counter() - started, memory.peak())


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.state = hashlib.sha256()
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        self.state.update(data)
        self._file.write(data)


def _write_row(file: _Hashed, row: Row, target: GptqTarget, weights: Weights, packed: Packed) -> None:
    if layout.of_type(row.type) is not None:
        arrays = packed(row.name)
        for tensor in layout.tensors(target, row):
            file.write(np.ascontiguousarray(arrays[tensor.name]).reshape(-1).view(np.uint8).data)
        return
    assert row.source is not None
    count = row.shape[0] if len(row.shape) < 3 else row.shape[0] * row.shape[1]
    step = max(1, _SLAB // (row.shape[-1] if len(row.shape) > 1 else 1))
    for start in range(0, count, step):
        values = weights.read(row.source, start, min(start + step, count))
        file.write(_stored(np.ascontiguousarray(values), row.type).reshape(-1).view(np.uint8).data)


def _stored(values: F32, kind: str) -> NDArray[Any]:
    """As the file's float type: exactly what was read where the source has it, nearest halves where it is quantised."""
    if kind == "F32":
        return values
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    out = np.empty(values.shape, np.uint16)
    halves.encode(values.reshape(1, -1), out.reshape(1, -1))
    return out


def arranged(plan: TargetPlan) -> list[shards.Shard]:
    """The files of the plan's tensors."""
    assert isinstance(plan.target, GptqTarget)
    return shards.arrange({row.name: layout.tensors(plan.target, row) for row in plan.rows})


def documents(plan: TargetPlan, snapshot: Snapshot, parts: list[shards.Shard], sources: Mapping[str, Any]) -> dict[str, str]:
    """The folder's text files: name -> text."""
    assert isinstance(plan.target, GptqTarget)
    said = layout.quantization_config(plan, plan.target, snapshot, sources)
    config = {key: value for key, value in snapshot.config.items() if key != "quantization_config"}
    found = carried.carried(snapshot, {**config, "quantization_config": said})
    if plan.target.layout == "gptq":
        found["quantize_config.json"] = carried.text(said)
    listing = shards.index(parts)
    return found | ({"model.safetensors.index.json": listing} if listing else {})
