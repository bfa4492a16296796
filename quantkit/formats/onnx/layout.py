"""What an ONNX folder of a model will hold: every tensor of its graph with its type, the graph's size, its data's.

A graph's weights lie in it, or, from INLINE bytes on and always of a decoder, in one file of external data beside it, each
aligned so that it can be mapped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import skeleton
from quantkit.errors import InputError
from quantkit.formats.carried import carried
from quantkit.formats.carried import text as written
from quantkit.formats.onnx import blocks, graphs, schemes
from quantkit.formats.onnx.blocks import Blocks
from quantkit.formats.onnx.dynamic import Dynamic
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.schemes import Scheme
from quantkit.planning import FilePlan, TargetPlan, bits_per_weight
from quantkit.targets import OnnxTarget
from quantkit.values import JOINED, Row, Snapshot

if TYPE_CHECKING:
    import onnx_ir as ir

DATA = ".data"  # after the graph's file name
INLINE = 1 << 30
SENSITIVE = ("*.DenseReluDense.wo.weight",)
"""Matrices that stay as they are without a rule: T5's second feed-forward one meets activations of every size."""
_PAGE = 4096
_LARGE = 1 << 20  # bytes; from there on tensors begin on a page
_ALIGNED = 64
_RESHAPING = ("Reshape", "Unsqueeze", "Squeeze", "Cast")


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


def plan(target: OnnxTarget, digest: str, snapshot: Snapshot, model: str, made: Sequence[Graph] | None = None) -> TargetPlan:
    """The plan of a folder, files within it as "<folder>/<file>". made: the graphs, where they are there.

    Raises InputError for rules that match nothing, UnsupportedError for a model that has no graph, WeightError for one that
    its checkpoint does not hold.
    """
    folder = f"{re.sub(r'[^A-Za-z0-9.]+', '-', model.split('/')[-1]).strip('-.') or 'model'}-{target.name}"
    made = made or graphs.build(snapshot, filled=False)
    if len(made) > 1 and target.layout == "transformers.js":
        raise InputError(f"{target.name}: transformers.js wants one merged decoder, which is not made; use layout: plain")
    by_graph = [plan_rows(target, graph, snapshot) for graph in made]
    rows = tuple({row.name: row for some in by_graph for row in some}.values())
    stored, names = lay_out(rows), [f"{folder}/{file(target, graph)}" for graph in made]
    if inline(made, stored):
        files = [FilePlan(names[0], rows, len(assemble(made[0], rows, empty)))]
    else:
        hold = external(data(target, names).rpartition("/")[2], stored)
        sizes = [len(assemble(graph, some, hold)) for graph, some in zip(made, by_graph, strict=True)]
        files = [FilePlan(name, (), size) for name, size in zip(names, sizes, strict=True)]
        files.append(FilePlan(data(target, names), rows, stored[-1].end))
    return TargetPlan(target, digest, tuple(files), bits_per_weight(rows))


def data(target: OnnxTarget, graphs: Sequence[str]) -> str:
    """The data file of these graphs: beside the one, or of several that share it."""
    if len(graphs) > 1:
        return f"{graphs[0].rpartition('/')[0]}/model.onnx{DATA}"
    return f"{graphs[0]}_data" if target.layout == "transformers.js" else f"{graphs[0]}{DATA}"


def file(target: OnnxTarget, graph: Graph) -> str:
    """Where a graph lies in its folder. transformers.js: packages/transformers/src/utils/dtypes.js; sentence-transformers:
    its backend's export_dynamic_quantized_onnx_model."""
    if target.layout == "transformers.js":
        return f"onnx/{graph.base}_{'quantized' if target.bits == 8 else 'q4'}.onnx"
    if target.layout == "sentence-transformers":
        return f"onnx/{graph.base}_{'qint8_avx2' if target.bits == 8 else 'q4'}.onnx"
    return f"{graph.base}.onnx"


def documents(target: OnnxTarget, snapshot: Snapshot) -> dict[str, str]:
    """What lies beside the graphs: file name -> text."""
    found, pooling = carried(snapshot), snapshot.config.get("pooling")
    if target.layout == "transformers.js":
        apart = skeleton.kind(snapshot.config) == "decoder"
        config = json.loads(found["config.json"]) | {"transformers.js_config": {"use_external_data_format": apart}}
        found["config.json"] = written(config)
    if pooling is not None:
        kinds = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
        listed = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(kinds)
        ]
        modes = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
        said = {f"pooling_mode_{mode}": pooling == name for name, mode in modes.items()}
        width = {"word_embedding_dimension": snapshot.config.get("hidden_size")}
        found |= {"modules.json": written(listed), "1_Pooling/config.json": written({**width, **said})}
    return found


def inline(graphs: Sequence[Graph], stored: Sequence[Stored]) -> bool:
    """Whether a graph holds its weights itself: an encoder's, unless it is large."""
    return graphs[0].kind == "encoder" and stored[-1].end < INLINE


def plan_rows(target: OnnxTarget, graph: Graph, snapshot: Snapshot) -> tuple[Row, ...]:
    """The fate of every tensor of a graph."""
    looked_up, multiplied, turned = tables(graph.model), matrices(graph.model), transposed(graph.model)
    quantisable = [name for name in graph.deferred if name in looked_up or name in multiplied]
    idle = [rule.match for rule in target.rules if not any(_matches(rule.match, graph, name) for name in quantisable)]
    if idle:
        some = ", ".join(quantisable[:2])
        raise InputError(f"{target.name}: rules that match no matrix: {', '.join(map(repr, idle))}; names are like {some}")
    leaders = sharing(graph.model) if target.imatrix else {}
    rows: list[Row] = []
    for name, deferred in graph.deferred.items():
        source = JOINED.join(deferred.sources) or None
        stored = snapshot.weights.infos.get(deferred.sources[0]) if source else None
        dtype = stored.dtype if stored else "F32"
        shape = deferred.shape[::-1] if name in turned else deferred.shape
        scheme, wanted, why = None, "F32", "no matrix"
        if name in quantisable:
            scheme, wanted, why = _scheme(target, graph, name, shape, multiplied=name in multiplied and name not in looked_up)
        if scheme is None:
            rows.append(Row(name, source, deferred.shape, dtype, "F32", wanted, why, 4 * math.prod(shape)))
            continue
        if isinstance(scheme, Dynamic) and name in leaders:
            scheme, wanted = Dynamic(True), Dynamic(True).type
            evens = f"{leaders[name]}{schemes.SMOOTHING}"
            if evens not in {row.name for row in rows}:
                rows.append(Row(evens, None, (shape[1],), "F32", "F32", "F32", "evens out an input", 4 * shape[1]))
        rows.append(Row(name, source, shape, dtype, scheme.type, wanted, why, schemes.nbytes(scheme, *shape)))
    return tuple(rows)


def sharing(model: ir.Model) -> dict[str, str]:
    """Matrix -> the first of those that are multiplied by the same input, of matrices that meet one input alone."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, nodes in matrices(model).items():
        inputs = {str(node.inputs[0].name) for node in nodes if node.inputs[0] is not None}
        if len(inputs) == 1:
            found[name] = first.setdefault(inputs.pop(), name)
    return found


def _scheme(
    target: OnnxTarget, graph: Graph, name: str, shape: tuple[int, ...], *, multiplied: bool
) -> tuple[Scheme | None, str, str]:
    """The scheme of a matrix (rows, width), the type that the recipe wants, and the reason. multiplied: and never looked up."""
    rule = next((rule for rule in target.rules if _matches(rule.match, graph, name)), None)
    if rule is None and any(fnmatchcase(name, each) for each in SENSITIVE):
        return None, "F32", "known to suffer from 8 bits"
    bits, block, why = target.bits, target.block, "the recipe's"
    kind = "blocks" if target.scheme == "fast-prefill" else target.scheme  # until its rules say where it is harmless
    kind = kind or ("blocks" if graph.kind == "decoder" else "dynamic")
    if rule is not None:
        bits, block, kind, why = rule.bits or bits, rule.block or block, rule.scheme or kind, f"rule {rule.match!r}"
        if rule.skip:
            return None, "F32", why
    if kind == "dynamic" and multiplied:
        return Dynamic(), Dynamic().type, why
    block = block or (32 if kind == "blocks" else 128)
    wanted = Blocks(bits, block, target.sym).type
    size = blocks.fitting(shape[-1], block)
    if size is None:
        return None, wanted, f"no block divides its {shape[-1]} columns"
    if size != block:
        why = f"a block of {block} does not divide its {shape[-1]} columns"
    return Blocks(bits, size, target.sym), wanted, why


def _matches(pattern: str, graph: Graph, name: str) -> bool:
    known = (name, *graph.deferred[name].sources)
    return any(fnmatchcase(each, pattern) or fnmatchcase(each.removesuffix(".weight"), pattern) for each in known)


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


def assemble(graph: Graph, rows: Sequence[Row], hold: Hold) -> bytes:
    """The graph with its quantised operators, as protobuf. graph.model stays as it is."""
    import onnx_ir as ir

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
    found: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return found


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
