"""A model's graph with its quantised operators: which nodes use a matrix, and what takes their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantkit.formats.onnx import blocks, schemes
from quantkit.formats.onnx.blocks import Blocks
from quantkit.formats.onnx.dynamic import Dynamic
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.stored import Hold, Stored, lay_out
from quantkit.values import Row

if TYPE_CHECKING:
    import onnx_ir as ir

_RESHAPING = ("Reshape", "Unsqueeze", "Squeeze", "Cast")


def matrices(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Initializers that activations are multiplied by, as they are or transposed (a tied head's), and where."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        value = _untransposed(node.inputs[1]) if node.op_type == "MatMul" else None
        if value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 2:
            found.setdefault(str(value.name), []).append(node)
    return found


def transposed(model: ir.Model) -> frozenset[str]:
    """Those of `matrices` that the graph holds as (width, rows)."""
    return frozenset(name for name, nodes in matrices(model).items() if nodes[0].inputs[1] is model.graph.initializers[name])


def tables(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Initializers that token ids look rows up in, as they are or transposed (a tied head's), and where."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        value = _untransposed(node.inputs[0]) if node.op_type == "Gather" and _are_ids(node.inputs[1]) else None
        if value is not None and value.is_initializer():
            found.setdefault(str(value.name), []).append(node)
    return found


def _untransposed(value: ir.Value | None) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else value


def _are_ids(value: ir.Value | None) -> bool:
    """Whether a value is the graph's token ids, in whatever shape."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type in _RESHAPING:
        value = producer.inputs[0]
    return value is not None and value.is_graph_input() and str(value.name).endswith("input_ids")


def sharing(model: ir.Model) -> dict[str, str]:
    """Matrix -> the first of those that are multiplied by the same input, of matrices that meet one input alone."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, nodes in matrices(model).items():
        inputs = {str(node.inputs[0].name) for node in nodes if node.inputs[0] is not None}
        if len(inputs) == 1:
            found[name] = first.setdefault(inputs.pop(), name)
    return found


def quantised(graph: Graph, rows: Sequence[Row], hold: Hold) -> ir.Model:
    """The graph with the operators that `rows` plan. graph.model stays as it is."""
    model = graph.model.clone()
    looked_up, multiplied, leaders = tables(model), matrices(model), sharing(model)
    parts_of: dict[str, dict[str, Stored]] = {}
    for each in lay_out(rows):
        parts_of.setdefault(each.row, {})[each.part] = each
    for row in rows:
        parts = parts_of[row.name]
        scheme = schemes.of_type(row.type)
        if scheme is None and row.name in model.graph.initializers:
            model.graph.initializers[row.name].const_value = hold(parts[""])
            continue
        values = {part: _register(model, each, hold) for part, each in parts.items()}
        if scheme is None:
            continue
        if scheme == Dynamic(True):
            values["smoothing"] = model.graph.initializers[f"{leaders[row.name]}{schemes.SMOOTHING}"]
        for node in multiplied.get(row.name, ()):
            scheme.multiply(node, values, *row.shape)
        for node in looked_up.get(row.name, ()):
            assert isinstance(scheme, Blocks)
            scheme.look_up(node, values, *row.shape)
    _drop_unused(model)
    _forget(model)
    model.graph.opset_imports.setdefault(blocks.DOMAIN, 1)
    model.graph.sort()
    model.producer_name, model.producer_version = "quantkit", None
    return model


def serialise(model: ir.Model) -> bytes:
    """As protobuf, the same bytes each time."""
    import onnx_ir as ir

    found: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return found


def _register(model: ir.Model, stored: Stored, hold: Hold) -> ir.Value:
    import onnx_ir as ir

    value = ir.Value(name=stored.name, shape=ir.Shape(stored.shape), type=ir.TensorType(ir.DataType[stored.dtype]))
    value.const_value = hold(stored)
    model.graph.register_initializer(value)
    return value


def _forget(model: ir.Model) -> None:
    """What exporters note of themselves: paths and lines of this machine's Python, which would be a third of a small file."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _drop_unused(model: ir.Model) -> None:
    """Transposes of tables that are gone, and the initializers that nobody reads."""
    for node in reversed(list(model.graph)):
        if node.op_type == "Transpose" and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
