"""Tensors lying in files, read by position: no mapping, so that resident memory is what the caller holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import SourceError
from quantkit.values import F32, U8, Progress, TensorInfo

SLAB = 1 << 20  # weights decoded at a time
_PAGE = 1 << 12  # bytes that a disk's cache holds together
_BAND = 1 << 20  # bytes read at a time for columns of short rows
_PIECE = 1 << 24  # bytes hashed at a time


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor's rows lie and how they decode: uint8 (n, row_bytes) -> float32 (n, width).

    order: the stored row that each row is, if they lie in another order. transposed: rows and columns are exchanged.
    shift: what is added to every decoded value.
    """

    path: Path
    offset: int
    rows: int
    row_bytes: int
    width: int
    decode: Callable[[U8], F32]
    order: NDArray[np.intp] | None = None
    transposed: bool = False
    shift: float = 0.0


class TensorFiles:
    """Weights over spans of files. Reads are positional, so threads may share one."""

    def __init__(self, infos: Mapping[str, TensorInfo], spans: Mapping[str, Span]) -> None:
        self.infos = infos
        self._spans = spans
        self.files = tuple(sorted({span.path for span in spans.values()}))
        self._open: dict[Path, int] = {}
        self._opening = Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        span, shape = self._spans[name], self.infos[name].shape
        if span.transposed:
            whole = self._decoded(span, 0, span.rows).T
            return np.ascontiguousarray(whole[start:stop])
        first, last, _ = slice(start, stop).indices(span.rows)
        out = self._decoded(span, first, max(first, last))
        return out.reshape(shape if len(out) == span.rows else (len(out), *shape[1:][-1:]))

    def _decoded(self, span: Span, first: int, last: int) -> F32:
        out = np.empty((last - first, span.width), dtype=np.float32)
        # A reordered row may come from anywhere in the tensor; packed, the whole of it is small.
        packed = self._rows(span, 0, span.rows)[span.order[first:last]] if span.order is not None else None
        step = max(1, SLAB // span.width)
        for begin in range(0, len(out), step):
            end = min(begin + step, len(out))
            raw = self._rows(span, first + begin, first + end) if packed is None else packed[begin:end]
            out[begin:end] = span.decode(np.ascontiguousarray(raw))
        if span.shift:
            out += np.float32(span.shift)
        return out

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> U8:
        """Rows [start, stop) as they lie in the file: (n, row_bytes)."""
        first, last, _ = slice(start, stop).indices(self._spans[name].rows)
        return self._rows(self._spans[name], first, max(first, last))

    def columns(self, name: str, first: int, last: int) -> U8:
        """Columns [first, last) of every row as they lie in the file: (rows, bytes)."""
        span = self._spans[name]
        size = span.row_bytes // span.width
        out = np.empty((span.rows, (last - first) * size), np.uint8)
        if span.row_bytes > _PAGE:
            for row, place in enumerate(out):
                self._fill(span.path, span.offset + row * span.row_bytes + first * size, place)
            return out
        step = _BAND // span.row_bytes  # no page is left out by reading less
        for begin in range(0, span.rows, step):
            end = min(begin + step, span.rows)
            out[begin:end] = self._rows(span, begin, end)[:, first * size : last * size]
        return out

    def _rows(self, span: Span, start: int, stop: int) -> U8:
        raw = np.empty((stop - start, span.row_bytes), dtype=np.uint8)
        self._fill(span.path, span.offset + start * span.row_bytes, raw.reshape(-1))
        return raw

    def _fill(self, path: Path, position: int, out: U8) -> None:
        """Read as many bytes as `out` (n,) has."""
        with self._opening:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY)
        view = out.data
        while view:  # one call reads at most 2 GiB
            count = os.preadv(self._open[path], [view], position)
            if count == 0:
                raise SourceError(f"{path.name} ends at byte {position}: it was cut short while in use")
            view, position = view[count:], position + count

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class DeclaredTensors:
    """Weights known by name and shape alone; reading them raises SourceError with the reason."""

    def __init__(self, infos: Mapping[str, TensorInfo], reason: str) -> None:
        self.infos = infos
        self._reason = reason

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        raise SourceError(f"cannot read {name}[{start}:{'' if stop is None else stop}]: {self._reason}")

    def close(self) -> None:
        pass


def digest(path: Path, progress: Progress) -> str:
    """sha256 of a file, streamed."""
    total, done, state = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            state.update(piece)
            done += len(piece)
            progress(f"sha256 {path.name}", done, total)
    return state.hexdigest()
