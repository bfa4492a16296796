"""The files of a GGUF: one, or parts of a given size; each one's header and exact size.

Parts as llama.cpp's gguf-split makes them: the first has the model's metadata, each says its place (split.no, split.count,
split.tensors.count), and llama.cpp finds the others by the first one's name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.codecs import gguf_kv
from quantkit.codecs.gguf_kv import KeyValue
from quantkit.errors import InputError
from quantkit.planning import FilePlan
from quantkit.values import Row

ALIGNMENT = 32


def files(
    name: str, rows: tuple[Row, ...], pairs: Sequence[KeyValue] | None, architecture: str, limit: int | None
) -> tuple[FilePlan, ...]:
    """The files that hold `rows` in order, none over `limit` bytes (None: one file whatever its size).

    pairs: the metadata, or None where it is not known yet: then sizes are None. Raises InputError for a tensor that is
    larger than the limit.
    """
    if limit is None:
        return (FilePlan(name, rows, _size(rows, pairs, architecture) if pairs is not None else None),)
    groups = _groups(rows, pairs or (), architecture, limit)
    stem, count = name.removesuffix(".gguf"), len(groups)
    return tuple(
        FilePlan(
            f"{stem}-{number + 1:05d}-of-{count:05d}.gguf" if count > 1 else name,
            group,
            _size(group, part_pairs(pairs, number, count, len(rows)), architecture) if pairs is not None else None,
        )
        for number, group in enumerate(groups)
    )


def part_pairs(pairs: Sequence[KeyValue], number: int, count: int, tensors: int) -> list[KeyValue]:
    """The metadata of part `number` of `count`: all of it in the first; a file that is not split says nothing of it."""
    if count == 1:
        return list(pairs)
    place = [
        KeyValue("split.no", number, "UINT16"),
        KeyValue("split.count", count, "UINT16"),
        KeyValue("split.tensors.count", tensors, "INT32"),
    ]
    return [*(pairs if number == 0 else ()), *place]


def said(pairs: Sequence[KeyValue], count: int, tensors: int, architecture: str) -> list[list[KeyValue]]:
    """The metadata of each of `count` parts as it is in the file: with the architecture, which gguf-py's writer puts first."""
    first = KeyValue("general.architecture", architecture, "STRING")
    return [[first, *part_pairs(pairs, number, count, tensors)] for number in range(count)]


def _groups(rows: tuple[Row, ...], pairs: Sequence[KeyValue], architecture: str, limit: int) -> list[tuple[Row, ...]]:
    """Rows for each part: as many as fit beside a header that lists all of them."""
    head = {first: _header_size(rows, part_pairs(pairs, 1 - first, 2, len(rows)), architecture) for first in (True, False)}
    groups: list[list[Row]] = [[]]
    used = head[True]
    for row in rows:
        if used + padded(row.nbytes) > limit and groups[-1]:
            groups.append([])
            used = head[False]
        used += padded(row.nbytes)
        if used > limit:
            raise InputError(
                f"split: {limit:,} bytes cannot hold {row.name}, which takes {padded(row.nbytes):,} beside a header of "
                f"{used - padded(row.nbytes):,}; give a larger size"
            )
        groups[-1].append(row)
    return [tuple(group) for group in groups]


def open_writer(path: Path, pairs: Sequence[KeyValue], rows: Sequence[Row], architecture: str) -> Any:
    """A gguf.GGUFWriter whose header, metadata and tensor table are written; tensors follow in the order of `rows`."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    gguf_kv.write(writer, pairs)
    for row in rows:
        kind = gguf.GGMLQuantizationType[row.type]
        writer.add_tensor_info(row.name, row.shape, np.dtype(np.float32), row.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _size(rows: Sequence[Row], pairs: Sequence[KeyValue], architecture: str) -> int:
    return _header_size(rows, pairs, architecture) + sum(padded(row.nbytes) for row in rows)


def _header_size(rows: Sequence[Row], pairs: Sequence[KeyValue], architecture: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        open_writer(path, pairs, rows, architecture).close()
        return padded(path.stat().st_size)


def padded(nbytes: int) -> int:
    """Up to the next multiple of GGUF's alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
