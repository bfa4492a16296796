"""Importance matrices as files: llama.cpp's GGUF, written and read, and its older .dat, read.

GGUF: for every tensor "<name>.in_sum2", the sums of x^2 (matrices, width), "<name>.counts", the rows that each matrix saw
(matrices, 1), and here also "<name>.in_sum", the sums of x. Source: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.codecs import gguf_kv
from quantkit.errors import SourceError
from quantkit.values import F32, Importance

_SQUARES, _SUMS, _COUNTS = ".in_sum2", ".in_sum", ".counts"


def write(path: Path, found: Mapping[str, Importance], *, datasets: Sequence[str], chunks: int, chunk_size: int) -> None:
    """The file that `llama-quantize --imatrix` reads. found: GGUF tensor name -> importance.

    A matrix that saw nothing is written with one row, for llama.cpp would take its importance for 1 throughout.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name, (squares, sums, counts) in _all_summed(found):
        for suffix, array in ((_SQUARES, squares), (_SUMS, sums), (_COUNTS, counts)):
            if array is not None:
                writer.add_tensor(f"{name}{suffix}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_written(found: Mapping[str, Importance]) -> dict[str, Importance]:
    """What `read` gives of what `write` was given: sums round, and codes are to follow from the file alone."""
    return {name: _divided(squares, sums, counts.reshape(-1)) for name, (squares, sums, counts) in _all_summed(found)}


def _all_summed(found: Mapping[str, Importance]) -> Iterator[tuple[str, tuple[F32, F32 | None, F32]]]:
    return ((name, _summed(value)) for name, value in found.items())


def _summed(value: Importance) -> tuple[F32, F32 | None, F32]:
    """Sums of x^2 and of x (matrices, width), and rows (matrices, 1)."""
    counts = np.maximum(value.counts, 1).astype(np.float32).reshape(-1, 1)

    def total(means: F32) -> F32:
        return (means.reshape(len(counts), -1) * counts).astype(np.float32)

    return total(value.squares), None if value.means is None else total(value.means), counts


def read(path: Path) -> dict[str, Importance]:
    """GGUF tensor name -> importance; squares are (width,), or (matrices, width) where each matrix of a stack has its own.

    A matrix that saw nothing gets what the others of its stack saw on average. An older .dat does not say how many matrices
    its values belong to: they come flat, and `fitted` cuts them. Raises SourceError for a file that is damaged or holds
    values that no mean of squares can have.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    found = _from_gguf(path) if magic == b"GGUF" else _from_dat(path)
    bad = [name for name, value in found.items() if not np.isfinite(value.squares).all() or (value.squares < 0).any()]
    if bad:
        raise SourceError(
            f"{path.name}: {', '.join(bad[:3])}: values that are negative, infinite or not numbers; make it again"
        )
    if not found:
        raise SourceError(f"{path.name} holds no importance: no tensor named *{_SQUARES}")
    return found


def _from_gguf(path: Path) -> dict[str, Importance]:
    header, data = gguf_kv.read(path), np.memmap(path, np.uint8, "r")
    arrays: dict[str, F32] = {}
    for record in header.tensors:
        size = 4 * int(np.prod(record.dimensions))
        start = header.data_offset + record.offset
        if record.ggml_type != 0 or start + size > len(data):
            raise SourceError(f"{path.name}: {record.name} is not float32 or not whole; make the file again")
        arrays[record.name] = np.array(data[start : start + size]).view(np.float32).reshape(record.dimensions[::-1])
    names = [name.removesuffix(_SQUARES) for name in arrays if name.endswith(_SQUARES)]
    if odd := [name for name in names if name + _COUNTS not in arrays]:
        raise SourceError(f"{path.name}: {odd[0]} has sums without counts; make the file again")
    return {
        name: _divided(arrays[name + _SQUARES], arrays.get(name + _SUMS), arrays[name + _COUNTS].reshape(-1)) for name in names
    }


def _divided(squares: F32, sums: F32 | None, counts: F32) -> Importance:
    seen = counts > 0

    def mean(total: F32) -> F32:
        found = np.zeros_like(total.reshape(len(counts), -1))
        found[seen] = total.reshape(len(counts), -1)[seen] / counts[seen, None]
        found[~seen] = found[seen].mean(0) if seen.any() else 1
        return found if len(counts) > 1 else found[0]

    return Importance(mean(squares), None if sums is None else mean(sums), np.rint(counts).astype(np.int64))


def _from_dat(path: Path) -> dict[str, Importance]:
    """int32 entries; each: int32 and name, int32 calls, int32 and float32 values, which are means times calls."""
    data, at = path.read_bytes(), 0

    def take(form: str) -> Any:
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    found = {}
    try:
        for _ in range(take("i")):
            name = take(f"{take('i')}s").decode("utf-8")
            calls, count = take("i"), take("i")
            values: NDArray[np.float32] = np.frombuffer(data, "<f4", count, at).copy()
            at += 4 * count
            found[name] = Importance(values / max(calls, 1), None, np.array([calls], np.int64))
    except (struct.error, ValueError, UnicodeDecodeError, MemoryError) as error:
        raise SourceError(f"{path.name} is no importance matrix of llama.cpp's: it breaks off near byte {at}") from error
    return found


def fitted(name: str, value: Importance, matrices: int, width: int) -> Importance:
    """The importance of a tensor of `matrices` (1 for one that is no stack) of `width` columns. Raises SourceError."""
    if value.squares.size == width:
        return Importance(value.squares.reshape(width), _shaped(value.means, width), value.counts[:1])
    if value.squares.size == matrices * width:
        counts = value.counts if len(value.counts) == matrices else np.repeat(value.counts[:1], matrices)
        return Importance(value.squares.reshape(matrices, width), _shaped(value.means, matrices, width), counts)
    raise SourceError(
        f"the importance matrix has {value.squares.size} values for {name}, which has {matrices} x {width} columns: it was "
        "made of another model"
    )


def _shaped(means: F32 | None, *shape: int) -> F32 | None:
    return None if means is None else means.reshape(shape)
