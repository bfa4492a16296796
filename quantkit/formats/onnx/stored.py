"""Where the tensors of planned rows lie in a file of external data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.formats.onnx import schemes
from quantkit.values import Row

_PAGE = 4096
_LARGE = 1 << 20  # bytes; from there on tensors begin on a page
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file. part: of its row's; "" where it is the row."""

    name: str
    row: str
    part: str
    dtype: str  # of onnx_ir.DataType
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


Hold = Callable[[Stored], Any]
"""hold(stored): the onnx_ir tensor that the graph gets for it."""


def lay_out(rows: Sequence[Row]) -> tuple[Stored, ...]:
    """What a data file holds, in order."""
    return tuple(_stored(rows))


def _stored(rows: Sequence[Row]) -> Iterator[Stored]:
    end = 0
    for row in rows:
        scheme = schemes.of_type(row.type)
        parts = scheme.parts(*row.shape) if scheme else {"": ("FLOAT", row.shape)}
        for part, (dtype, shape) in parts.items():
            nbytes = schemes.size(dtype, shape)
            step = _PAGE if nbytes >= _LARGE else _ALIGNED
            offset = -(-end // step) * step
            yield Stored(schemes.name(row.name, part), row.name, part, dtype, shape, offset, nbytes)
            end = offset + nbytes


def external(file: str, laid_out: Sequence[Stored]) -> Hold:
    """Tensors that lie in the data file of this name."""
    import onnx_ir as ir

    places = {each.name: each for each in laid_out}

    def hold(stored: Stored) -> Any:
        place, kind, shape = places[stored.name], ir.DataType[stored.dtype], ir.Shape(stored.shape)
        return ir.ExternalTensor(file, place.offset, place.nbytes, kind, shape=shape, name=stored.name)

    return hold


def empty(stored: Stored) -> Any:
    """Tensors of the right size that hold nothing: for a graph of which only the size is asked."""
    import onnx_ir as ir

    kind = {"UINT8": np.uint8, "INT8": np.int8}.get(stored.dtype, np.float32)
    return ir.Tensor(np.zeros(stored.shape, kind), name=stored.name)
