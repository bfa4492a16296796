"""An ONNX graph's tensors as they were written, read by onnx_ir, blocks decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import SourceError
from quantkit.formats.onnx import schemes
from quantkit.formats.onnx.dynamic import Dynamic
from quantkit.formats.onnx.exported import SMALL
from quantkit.values import F32, Row, TensorInfo


@dataclass(frozen=True, slots=True)
class OnnxTensors:
    """`values.Weights` of a graph, by the names of its planned rows; the parts of a quantised one are one tensor again."""

    infos: Mapping[str, TensorInfo]
    held: Mapping[str, Mapping[str, Any]]  # row -> part -> onnx_ir tensor

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        parts, info = {part: tensor.numpy() for part, tensor in self.held[name].items()}, self.infos[name]
        scheme = schemes.of_type(info.dtype)
        if scheme is None:
            found: F32 = np.array(parts[""][start:stop], np.float32)
            return found
        said = scheme.parts(*info.shape)
        cut = [part for part in parts if part in said]
        rows = {part: _rows(parts[part], said[part][1], info.shape[0], start, stop) for part in cut}
        return scheme.decode(parts | rows)

    def close(self) -> None:
        pass


def _rows(array: np.ndarray[Any, Any], shape: tuple[int, ...], rows: int, start: int, stop: int | None) -> Any:
    """Those of a part that belong to rows [start, stop) of its matrix."""
    last = len(shape) == 2 and shape[1] == rows and array.dtype == np.int8  # codes of Dynamic
    return array[:, start:stop] if last else array[start:stop]


def _smoothing(codes: Any) -> Any:
    """The vector that the input of a product with `codes` is multiplied by: of the graph as it is written."""
    product = next(use.node for use in codes.uses() if use.node.op_type == "MatMulInteger")
    return product.inputs[0].producer().inputs[0].producer().inputs[1].const_value


def read(paths: Sequence[Path], rows: Sequence[Row]) -> OnnxTensors:
    """The tensors of graphs, which may share them. What they hold beside the planned rows, constants apart, is there under its
    own name.

    Raises SourceError for a file that does not parse.
    """
    import onnx_ir as ir

    values: dict[str, Any] = {}
    for path in paths:
        try:
            values = dict(ir.load(path).graph.initializers) | values
        except Exception as error:
            raise SourceError(f"{path} is no ONNX graph: {error}") from error
    initializers = {name: value.const_value for name, value in values.items()}
    used: set[str] = set()
    held: dict[str, dict[str, Any]] = {}
    infos: dict[str, TensorInfo] = {}
    for row in rows:
        scheme = schemes.of_type(row.type)
        parts = {part: schemes.name(row.name, part) for part in (scheme.parts(*row.shape) if scheme else ("",))}
        if all(initializers.get(name) is not None for name in parts.values()):
            held[row.name] = {part: initializers[name] for part, name in parts.items()}
            if scheme == Dynamic(True):
                held[row.name]["smoothing"] = _smoothing(values[parts["codes"]])
            used.update(parts.values())
            infos[row.name] = TensorInfo(row.name, row.shape, row.type, row.nbytes)
    for name, tensor in initializers.items():
        if (
            name not in used
            and tensor is not None
            and tensor.size > SMALL
            and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT8)
        ):
            held[name] = {"": tensor}
            infos[name] = TensorInfo(name, tuple(tensor.shape.numpy()), "F32", tensor.nbytes)
    return OnnxTensors(infos, held)
