"""What an ONNX folder of a model will hold: every tensor of its graph with its type, the graph's size, its data's.

Weights lie in one file of external data beside the graph, each aligned so that it can be mapped; a graph stays far below
protobuf's 2 GB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from quantkit.errors import InputError
from quantkit.formats.onnx import blocks, builder
from quantkit.formats.onnx.builder import Graph
from quantkit.planning import FilePlan, TargetPlan, bits_per_weight
from quantkit.targets import OnnxTarget
from quantkit.values import JOINED, Row, Snapshot

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL, DATA = "model.onnx", "model.onnx.data"
_PAGE = 4096
_LARGE = 1 << 20  # bytes; from there on tensors begin on a page
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the data file. part: of its row's; "" where it is the row."""

    name: str
    row: str
    part: str
    dtype: str  # of onnx_ir.DataType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """A quantised graph, as protobuf, and what its data file holds, in order."""

    graph: bytes
    stored: tuple[Stored, ...]
    nbytes: int  # of the data file
    transposed: frozenset[str]  # rows that the unquantised graph holds as (width, rows)


def plan(target: OnnxTarget, digest: str, snapshot: Snapshot, model: str) -> TargetPlan:
    """The plan of a folder, files within it as "<folder>/<file>". Raises InputError for rules that match nothing,
    UnsupportedError for a model that has no graph, WeightError for one that its checkpoint does not hold."""
    graph = builder.build(snapshot)
    rows = plan_rows(target, graph, snapshot)
    folder = f"{re.sub(r'[^A-Za-z0-9.]+', '-', model.split('/')[-1]).strip('-.') or 'model'}-{target.name}"
    made = assemble(graph, rows)
    files = (FilePlan(f"{folder}/{MODEL}", (), len(made.graph)), FilePlan(f"{folder}/{DATA}", rows, made.nbytes))
    return TargetPlan(target, digest, files, bits_per_weight(rows))


def plan_rows(target: OnnxTarget, graph: Graph, snapshot: Snapshot) -> tuple[Row, ...]:
    """The fate of every tensor of a graph."""
    tables, found = _tables(graph.model), matrices(graph.model)
    idle = [rule.match for rule in target.rules if not any(_matches(rule.match, graph, name) for name in (*tables, *found))]
    if idle:
        some = ", ".join(list(found)[:2])
        raise InputError(f"{target.name}: rules that match no matrix: {', '.join(map(repr, idle))}; names are like {some}")
    return tuple(_row(target, graph, snapshot, name, name in tables or name in found) for name in graph.deferred)


def _row(target: OnnxTarget, graph: Graph, snapshot: Snapshot, name: str, quantisable: bool) -> Row:
    deferred = graph.deferred[name]
    source = JOINED.join(deferred.sources) or None
    stored = snapshot.weights.infos.get(deferred.sources[0]) if source else None
    dtype = stored.dtype if stored else "F32"
    shape = deferred.shape[::-1] if name in matrices(graph.model) else deferred.shape
    settings, wanted, why = _settings(target, graph, name, shape) if quantisable else (None, "F32", "no matrix")
    if settings is None:
        return Row(name, source, deferred.shape, dtype, "F32", wanted, why, 4 * math.prod(shape))
    return Row(name, source, shape, dtype, settings.type, wanted, why, settings.nbytes(*shape))


def _settings(target: OnnxTarget, graph: Graph, name: str, shape: tuple[int, ...]) -> tuple[blocks.Settings | None, str, str]:
    """The settings of a matrix (rows, width), what the recipe wants, and the reason."""
    bits, block, why = target.bits, target.block, "the recipe's bits and block"
    rule = next((rule for rule in target.rules if _matches(rule.match, graph, name)), None)
    if rule is not None:
        bits, block, why = rule.bits or bits, rule.block or block, f"rule {rule.match!r}"
        if rule.skip:
            return None, "F32", why
    wanted = blocks.Settings(bits, block, target.sym).type
    size = blocks.fitting(shape[-1], block)
    if size is None:
        return None, wanted, f"no block divides its {shape[-1]} columns"
    if size != block:
        why = f"a block of {block} does not divide its {shape[-1]} columns"
    return blocks.Settings(bits, size, target.sym), wanted, why


def _matches(pattern: str, graph: Graph, name: str) -> bool:
    known = (name, *graph.deferred[name].sources)
    return any(fnmatchcase(each, pattern) or fnmatchcase(each.removesuffix(".weight"), pattern) for each in known)


def matrices(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Initializers that activations are multiplied by, and where."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer():
            value = node.inputs[1]
            if value.shape is not None and len(value.shape) == 2:
                found.setdefault(str(value.name), []).append(node)
    return found


def _tables(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Initializers that token ids look rows up in, as they are or transposed (a tied head's), and where."""
    found: dict[str, list[ir.Node]] = {}
    ids = {value.name for value in model.graph.inputs if value.name and value.name.endswith("input_ids")}
    for node in model.graph:
        if node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name in ids:
            value = node.inputs[0]
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "Transpose":
                value = producer.inputs[0]
            if value is not None and value.is_initializer():
                found.setdefault(str(value.name), []).append(node)
    return found


def assemble(graph: Graph, rows: Sequence[Row]) -> Assembled:
    """The graph with its quantised operators, all tensors in external data. Changes `graph.model`."""
    import onnx_ir as ir

    tables, found = _tables(graph.model), matrices(graph.model)
    stored = list(_lay_out(rows))
    for row in rows:
        parts = [each for each in stored if each.row == row.name]
        values = {each.part: _register(graph.model, each) for each in parts if each.part}
        settings = blocks.of_type(row.type)
        if settings is None:
            value = graph.model.graph.initializers[row.name]
            value.const_value = _external(parts[0])
            continue
        for node in found.get(row.name, ()):
            blocks.multiply(node, values, settings, *row.shape)
        for node in tables.get(row.name, ()):
            blocks.look_up(node, values, settings, *row.shape)
    _drop_unused(graph.model)
    graph.model.graph.sort()
    graph.model.producer_name = "quantkit"
    proto = ir.to_proto(graph.model)
    end = stored[-1].offset + stored[-1].nbytes if stored else 0
    return Assembled(proto.SerializeToString(deterministic=True), tuple(stored), end, frozenset(found))


def _lay_out(rows: Sequence[Row]) -> Iterator[Stored]:
    end = 0
    for row in rows:
        for name, part, dtype, shape in _parts(row):
            nbytes = math.prod(shape) * (1 if dtype == "UINT8" else 4)
            step = _PAGE if nbytes >= _LARGE else _ALIGNED
            offset = -(-end // step) * step
            yield Stored(name, row.name, part, dtype, shape, offset, nbytes)
            end = offset + nbytes


def _parts(row: Row) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    settings = blocks.of_type(row.type)
    if settings is None:
        yield row.name, "", "FLOAT", row.shape
        return
    shapes, dtypes = settings.shapes(*row.shape), blocks.dtypes()
    for part, name in blocks.names(row.name, settings).items():
        yield name, part, dtypes[part], shapes[part]


def _external(stored: Stored) -> Any:
    import onnx_ir as ir

    kind, shape = ir.DataType[stored.dtype], ir.Shape(stored.shape)
    return ir.ExternalTensor(DATA, stored.offset, stored.nbytes, kind, shape=shape, name=stored.name)


def _register(model: ir.Model, stored: Stored) -> ir.Value:
    import onnx_ir as ir

    value = ir.Value(name=stored.name, shape=ir.Shape(stored.shape), type=ir.TensorType(ir.DataType[stored.dtype]))
    value.const_value = _external(stored)
    model.graph.register_initializer(value)
    return value


def _drop_unused(model: ir.Model) -> None:
    """Transposes of tables that are gone, and the initializers that nobody reads."""
    for node in reversed(list(model.graph)):
        if node.op_type == "Transpose" and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
