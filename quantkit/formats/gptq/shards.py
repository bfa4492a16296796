"""Safetensors files of bounded size with an index, written tensor by tensor. Source: safetensors' README, "Format"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LARGEST = 5 * 10**9  # bytes of a shard's tensors, as transformers has it
METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to be, the rows of the plan that it holds, and their tensors in order."""

    name: str
    rows: frozenset[str]
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return len(header(self.tensors)) + sum(tensor.nbytes for tensor in self.tensors)


def arrange(rows: Mapping[str, Sequence[Tensor]], largest: int = LARGEST) -> list[Shard]:
    """Rows into as few files as hold them in order, none larger than `largest` unless one row is."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, tensors in rows.items():
        nbytes = sum(tensor.nbytes for tensor in tensors)
        if parts[-1] and held + nbytes > largest:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += nbytes
    count = len(parts)
    names = ["model.safetensors"] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    return [
        Shard(file, frozenset(part), tuple(tensor for name in part for tensor in rows[name]))
        for file, part in zip(names, parts, strict=True)
    ]


def header(tensors: Sequence[Tensor]) -> bytes:
    """A file's first bytes: the length of a JSON object, and the object, padded to eight."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def index(shards: Sequence[Shard]) -> str | None:
    """model.safetensors.index.json; None for a single file."""
    if len(shards) == 1:
        return None
    placed = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}, indent=2) + "\n"
