"""GGUF key-value pairs and the header: written through gguf-py's GGUFWriter, read here.

gguf-py's GGUFReader keeps numpy views of every string of a vocabulary: 2.3 s and 167 MB for SmolLM2's header, where
this reader takes 0.07 s; that is why there is one. Layout: ggml's docs/gguf.md; the tests hold it against GGUFReader.
"""

from __future__ import annotations

import struct
from collections import Counter
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
MOST_HEADER = 64 << 20  # bytes; the largest vocabulary known takes 16 MB
MOST_PAIRS = 1 << 16
MOST_TENSORS = 1 << 18
MOST_ITEMS = 1 << 22  # of an array
MOST_AXES = 4  # GGML_MAX_DIMS
MOST_ALIGNMENT = 1 << 20
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
            return _header(file, path.name)
        except (EOFError, UnicodeDecodeError, KeyError) as error:
            raise SourceError(
                f"{path.name}: the GGUF header breaks off or is damaged near byte {file.tell()} "
                f"of {path.stat().st_size} ({type(error).__name__}: {error}); fetch the file again"
            ) from error


def _take(file: BinaryIO, count: int) -> bytes:
    if file.tell() + count > MOST_HEADER:  # a damaged count, or a bomb: not a byte is reserved for it
        raise EOFError(f"{count} bytes wanted, at most {MOST_HEADER} are a header")
    data = file.read(count)
    if len(data) != count:
        raise EOFError(f"{count} bytes wanted, {len(data)} left")
    return data


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack("<" + form, _take(file, struct.calcsize("<" + form)))[0]


def _string(file: BinaryIO) -> str:
    return _take(file, _number(file, "Q")).decode("utf-8")


def _array(file: BinaryIO, kind: int) -> list[Any]:
    count = _bounded(_number(file, "Q"), MOST_ITEMS, "items of an array")
    if kind == _STRING:
        return [_string(file) for _ in range(count)]
    dtype = np.dtype("<" + _NUMBERS[_KINDS[kind]][1])
    return list(np.frombuffer(_take(file, count * dtype.itemsize), dtype).tolist())


def _header(file: BinaryIO, name: str) -> Header:
    magic, version = _take(file, 4), _number(file, "I")
    if magic != b"GGUF":
        raise SourceError(f"{name} is not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    if version not in (2, 3):
        raise UnsupportedError(f"{name}: GGUF version {version} or byte order not supported; supported: 2, 3, little endian")
    tensor_count = _bounded(_number(file, "Q"), MOST_TENSORS, "tensors")
    pair_count = _bounded(_number(file, "Q"), MOST_PAIRS, "pairs of metadata")
    pairs = tuple(_pair(file) for _ in range(pair_count))
    tensors = tuple(_tensor(file) for _ in range(tensor_count))
    for what, keys in (("metadata", [pair.key for pair in pairs]), ("tensors", [tensor.name for tensor in tensors])):
        if (twice := next((key for key, count in Counter(keys).items() if count > 1), None)) is not None:
            raise SourceError(f"{name}: its {what} name {twice!r} twice; fetch the file again")
    alignment = values(pairs).get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise SourceError(
            f"{name}: general.alignment = {alignment!r} is no power of two up to {MOST_ALIGNMENT}; fetch it again"
        )
    return Header(pairs, tensors, -(-file.tell() // alignment) * alignment)


def _bounded(count: int, most: int, what: str) -> int:
    if count > most:
        raise EOFError(f"{count} {what}, at most {most} can be")
    return count


def _pair(file: BinaryIO) -> KeyValue:
    key, number = _string(file), _number(file, "I")
    if number == _ARRAY:
        item = _number(file, "I")
        return KeyValue(key, _array(file, item), "ARRAY", _KINDS[item])
    if number == _STRING:
        return KeyValue(key, _string(file), "STRING")
    kind = _KINDS[number]
    return KeyValue(key, _number(file, _NUMBERS[kind][1]), kind)


def _tensor(file: BinaryIO) -> TensorRecord:
    name, rank = _string(file), _bounded(_number(file, "I"), MOST_AXES, "axes of a tensor")
    dimensions = tuple(_number(file, "Q") for _ in range(rank))
    return TensorRecord(name, dimensions, _number(file, "I"), _number(file, "Q"))


def shortest(value: float) -> float:
    """A float32 out of a file as the shortest decimal that means it: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def require(pairs: Mapping[str, Any], key: str) -> Any:
    """pairs[key]. Raises SourceError naming the key."""
    if key not in pairs:
        raise SourceError(f"the GGUF lacks the required key {key!r}")
    return pairs[key]
