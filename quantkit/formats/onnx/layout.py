"""What an ONNX folder of a model will hold: every tensor of its graph with its type, the graph's size, its data's.

A graph's weights lie in it, or, from INLINE bytes on and always of a decoder, in one file of external data beside it, each
aligned so that it can be mapped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from quantkit import skeleton
from quantkit.errors import InputError
from quantkit.formats.carried import carried
from quantkit.formats.carried import text as written
from quantkit.formats.onnx import assembly, blocks, graphs, merged, schemes
from quantkit.formats.onnx.blocks import Blocks
from quantkit.formats.onnx.dynamic import Dynamic
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.schemes import Scheme
from quantkit.formats.onnx.stored import Hold, Stored, empty, external, lay_out
from quantkit.planning import FilePlan, TargetPlan, bits_per_weight
from quantkit.targets import OnnxTarget
from quantkit.values import JOINED, Row, Snapshot

DATA = ".data"  # after the graph's file name
INLINE = 1 << 30
SENSITIVE = ("*.DenseReluDense.wo.weight",)
"""Matrices that stay as they are without a rule: T5's second feed-forward one meets activations of every size."""
PROTOBUF = (1 << 31) - 1  # bytes that a file of protobuf can have


def plan(target: OnnxTarget, digest: str, snapshot: Snapshot, model: str, made: Sequence[Graph] | None = None) -> TargetPlan:
    """The plan of a folder, files within it as "<folder>/<file>". made: the graphs, where they are there.

    Raises InputError for rules that match nothing, UnsupportedError for a model that has no graph, WeightError for one that
    its checkpoint does not hold.
    """
    folder = f"{re.sub(r'[^A-Za-z0-9.]+', '-', model.split('/')[-1]).strip('-.') or 'model'}-{target.name}"
    made = made or graphs.build(snapshot, filled=False)
    rows = tuple({row.name: row for graph in made for row in plan_rows(target, graph, snapshot)}.values())
    stored, parts = lay_out(rows), files(target, made)
    names = [f"{folder}/{file(target, part)}" for part in parts]
    if inline(target, made, stored):
        contents = [len(assemble(part, rows, empty)) for part in parts]
        planned = [FilePlan(name, (), size) for name, size in zip(names, contents, strict=True)]
        planned[0] = FilePlan(names[0], rows, contents[0])
        if max(contents) >= PROTOBUF:
            raise InputError(f"{target.name}: a graph of {max(contents) / 1e9:.1f} GB is none; use layout: plain")
    else:
        hold = external(data(target, names).rpartition("/")[2], stored)
        planned = [FilePlan(name, (), len(assemble(part, rows, hold))) for name, part in zip(names, parts, strict=True)]
        planned.append(FilePlan(data(target, names), rows, stored[-1].end))
    return TargetPlan(target, digest, tuple(planned), bits_per_weight(rows))


def files(target: OnnxTarget, made: Sequence[Graph]) -> tuple[Sequence[Graph], ...]:
    """The graphs by the file that holds them: transformers.js wants the two decoders of an encoder-decoder in one."""
    if len(made) > 1 and target.layout == "transformers.js":
        return made[:1], made[1:]
    return tuple((graph,) for graph in made)


def assemble(part: Sequence[Graph], rows: Sequence[Row], hold: Hold) -> bytes:
    """A file of one graph or of two. rows: of all files."""
    models = [assembly.quantised(graph, [row for row in rows if holds(graph, row)], hold) for graph in part]
    return assembly.serialise(merged.merge(*models) if len(models) > 1 else models[0])


def holds(graph: Graph, row: Row) -> bool:
    """Whether a planned row is of this graph: of several, each has some."""
    return row.name.removesuffix(schemes.SMOOTHING) in graph.deferred


def data(target: OnnxTarget, graphs: Sequence[str]) -> str:
    """The data file of these graphs: beside the one, or of several that share it."""
    if len(graphs) > 1:
        return f"{graphs[0].rpartition('/')[0]}/model.onnx{DATA}"
    return f"{graphs[0]}_data" if target.layout == "transformers.js" else f"{graphs[0]}{DATA}"


def file(target: OnnxTarget, part: Sequence[Graph]) -> str:
    """Where the file of one graph or two lies in its folder.

    transformers.js: packages/transformers/src/utils/dtypes.js; sentence-transformers: its backend's
    export_dynamic_quantized_onnx_model.
    """
    base = part[0].base if len(part) == 1 else merged.NAME
    if target.layout == "transformers.js":
        return f"onnx/{base}_{'quantized' if target.bits == 8 else 'q4'}.onnx"
    if target.layout == "sentence-transformers":
        return f"onnx/{base}_{'qint8_avx2' if target.bits == 8 else 'q4'}.onnx"
    return f"{base}.onnx"


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


def inline(target: OnnxTarget, graphs: Sequence[Graph], stored: Sequence[Stored]) -> bool:
    """Whether graphs hold their weights themselves: an encoder's, unless it is large, and where transformers.js wants several,
    since each of its sessions reads a data file of its own."""
    if len(graphs) > 1:
        return target.layout == "transformers.js"
    return graphs[0].kind == "encoder" and stored[-1].end < INLINE


def plan_rows(target: OnnxTarget, graph: Graph, snapshot: Snapshot) -> tuple[Row, ...]:
    """The fate of every tensor of a graph."""
    looked_up, multiplied, turned = (
        assembly.tables(graph.model),
        assembly.matrices(graph.model),
        assembly.transposed(graph.model),
    )
    quantisable = [name for name in graph.deferred if name in looked_up or name in multiplied]
    idle = [rule.match for rule in target.rules if not any(_matches(rule.match, graph, name) for name in quantisable)]
    if idle:
        some = ", ".join(quantisable[:2])
        raise InputError(f"{target.name}: rules that match no matrix: {', '.join(map(repr, idle))}; names are like {some}")
    leaders = assembly.sharing(graph.model) if target.imatrix else {}
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
