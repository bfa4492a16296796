"""An ONNX folder's tensors as they were written, read by onnx_ir, blocks decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import SourceError
from quantkit.formats.onnx import blocks
from quantkit.values import F32, Row, TensorInfo


@dataclass(frozen=True, slots=True)
class OnnxTensors:
    """`values.Weights` of a graph, by the names of its planned rows; the parts of a quantised one are one tensor again."""

    infos: Mapping[str, TensorInfo]
    held: Mapping[str, Mapping[str, Any]]  # row -> part -> onnx_ir tensor

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        parts = {part: tensor.numpy()[start:stop] for part, tensor in self.held[name].items()}
        settings = blocks.of_type(self.infos[name].dtype)
        if settings is not None:
            return blocks.decode(parts, settings)
        found: F32 = np.array(parts[""], np.float32)
        return found

    def close(self) -> None:
        pass


def read(path: Path, rows: Sequence[Row]) -> OnnxTensors:
    """The tensors of a graph. What it holds beside the planned rows is there under its own name.

    Raises SourceError for a file that does not parse, or whose data is shorter than it says.
    """
    import onnx_ir as ir

    try:
        initializers = {name: value.const_value for name, value in ir.load(path).graph.initializers.items()}
    except Exception as error:  # protobuf's and onnx_ir's share no base but this
        raise SourceError(f"{path} is no ONNX graph: {error}") from error
    held: dict[str, dict[str, Any]] = {}
    for row in rows:
        settings = blocks.of_type(row.type)
        names = blocks.names(row.name, settings) if settings else {"": row.name}
        if all(name in initializers for name in names.values()):
            held[row.name] = {part: initializers.pop(name) for part, name in names.items()}
    kinds = {row.name: (row.shape, row.type) for row in rows}
    held |= {str(name): {"": tensor} for name, tensor in initializers.items() if tensor is not None and tensor.size > SMALL}
    infos = {}
    for name, parts in held.items():
        shape, kind = kinds.get(name, (tuple(parts[""].shape) if "" in parts else (), "F32"))
        infos[name] = TensorInfo(name, shape, kind, sum(tensor.nbytes for tensor in parts.values()))
    return OnnxTensors(infos, held)


SMALL = 16  # elements; a graph's own constants are no weights
