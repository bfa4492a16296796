"""GGUF key-value pairs and the header: written through gguf-py's GGUFWriter, read here.

gguf-py's GGUFReader keeps a numpy view for every string of a vocabulary: 2.3 s and 167 MB for SmolLM2's header, ten
times that of this reader, which is why there is one (layout: ggml docs/gguf.md; the tests hold it against GGUFReader).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantkit.errors import SourceError, UnsupportedError

# gguf.GGUFValueType: name -> (number, struct format); strings and arrays have no fixed size.
_NUMBERS = {
    "UINT8": (0, "B"), "INT8": (1, "b"), "UINT16": (2, "H"), "INT16": (3, "h"), "UINT32": (4, "I"), "INT32": (5, "i"),
    "FLOAT32": (6, "f"), "BOOL": (7, "?"), "UINT64": (10, "Q"), "INT64": (11, "q"), "FLOAT64": (12, "d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_KINDS = {number: name for name, (number, _) in _NUMBERS.items()} | {_STRING: "STRING", _ARRAY: "ARRAY"}


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One metadata pair. `kind` and, for an array, `item` are names of gguf.GGUFValueType."""

    key: str
    value: Any
    kind: str
    item: str | None = None


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as a GGUF declares it: dimensions fastest first, offset from the start of the data section."""

    name: str
    dimensions: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    pairs: tuple[KeyValue, ...]
    tensors: tuple[TensorRecord, ...]
    data_offset: int

    def values(self) -> dict[str, Any]:
        return values(self.pairs)


def values(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Key -> value, the kinds left out."""
    return {pair.key: pair.value for pair in pairs}


def write(writer: Any, pairs: Iterable[KeyValue]) -> None:
    """Hand the pairs to a gguf.GGUFWriter, in order."""
    import gguf

    for pair in pairs:
        item = gguf.GGUFValueType[pair.item] if pair.item else None
        writer.add_key_value(pair.key, pair.value, gguf.GGUFValueType[pair.kind], sub_type=item)


def read(path: Path) -> Header:
    """The header of a GGUF file (version 2 or 3, little endian). Raises SourceError, UnsupportedError."""
    with path.open("rb") as file:
        try:
            return _header(_Cursor(file), path)
        except (EOFError, UnicodeDecodeError, KeyError) as error:
            raise SourceError(
                f"{path.name}: the GGUF header breaks off or is damaged near byte {file.tell()} "
                f"of {path.stat().st_size} ({type(error).__name__}: {error}); fetch the file again"
            ) from error


class _Cursor:
    """Reads little-endian values off a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise EOFError(f"{count} bytes wanted, {len(data)} left")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def array(self, kind: int) -> list[Any]:
        count = self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        form = _NUMBERS[_KINDS[kind]][1]
        dtype = np.dtype("<" + form)
        return list(np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist())


def _header(cursor: _Cursor, path: Path) -> Header:
    magic, version = cursor.take(4), cursor.number("I")
    if magic != b"GGUF":
        raise SourceError(f"{path.name} is not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    if version not in (2, 3):
        raise UnsupportedError(
            f"{path.name}: GGUF version {version} or byte order not supported; supported: 2 and 3, little endian"
        )
    tensor_count, pair_count = cursor.number("Q"), cursor.number("Q")
    pairs = tuple(_pair(cursor) for _ in range(pair_count))
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    alignment = values(pairs).get("general.alignment", 32)
    return Header(pairs, tensors, -(-cursor.file.tell() // alignment) * alignment)


def _pair(cursor: _Cursor) -> KeyValue:
    key, number = cursor.string(), cursor.number("I")
    if number == _ARRAY:
        item = cursor.number("I")
        return KeyValue(key, cursor.array(item), "ARRAY", _KINDS[item])
    if number == _STRING:
        return KeyValue(key, cursor.string(), "STRING")
    kind = _KINDS[number]
    return KeyValue(key, cursor.number(_NUMBERS[kind][1]), kind)


def _tensor(cursor: _Cursor) -> TensorRecord:
    name, rank = cursor.string(), cursor.number("I")
    dimensions = tuple(cursor.number("Q") for _ in range(rank))
    return TensorRecord(name, dimensions, cursor.number("I"), cursor.number("Q"))


def shortest(value: float) -> float:
    """A float32 out of a file as the shortest decimal that means it: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def require(pairs: Mapping[str, Any], key: str) -> Any:
    """pairs[key]. Raises SourceError naming the key."""
    if key not in pairs:
        raise SourceError(f"the GGUF lacks the required key {key!r}")
    return pairs[key]
