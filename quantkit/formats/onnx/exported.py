"""Graphs by transformers' own exporter: encoders, and decoders that genai's builder does not know.

A decoder is exported once, with a cache that holds tokens already: the one graph then serves prompt and decode, and its mask
stays an input because a part of it is zero.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import psutil

from quantkit import arch, modules, skeleton
from quantkit.errors import ResourceError, UnsupportedError
from quantkit.formats.onnx import recorded
from quantkit.formats.onnx.blocks import replace
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.recorded import Deferred
from quantkit.values import Snapshot

if TYPE_CHECKING:
    import onnx_ir as ir

SMALL = 16  # elements; constants of the graph's own are no weights
COPIES = 3  # of the weights in float32: the model's, the graph's, and what is made of them
_SCOPES = "pkg.torch.onnx.name_scopes"


def build(snapshot: Snapshot, *, filled: bool = True) -> tuple[Graph, ...]:
    """The float32 graphs of a model, made from its weights, or not `filled` from random ones: what is planned reads none.

    Raises UnsupportedError where the exporter fails, ResourceError where the model in float32 does not fit memory COPIES times.
    """
    need, held = COPIES * 4 * snapshot.parameters(), psutil.virtual_memory().total
    if need > held:
        raise ResourceError(
            f"{snapshot.config.get('model_type')} is exported by transformers, which holds it in float32: about "
            f"{need / 1e9:.0f} GB, and this machine has {held / 1e9:.0f} GB; use gguf or gptq, or a larger machine"
        )
    kind = skeleton.kind(snapshot.config)
    model = load(snapshot, arch.AUTO_CLASS[kind], filled=filled)
    if kind == "encoder-decoder":
        return _transducer(model, snapshot)
    inputs = _decoder_inputs(model) if kind == "decoder" else _encoder_inputs(model)
    graph = _export(model, inputs)
    _name_inputs(graph, inputs)
    return (_finished("model", kind, graph, snapshot),)


def _finished(base: str, kind: arch.Kind, graph: ir.Model, snapshot: Snapshot, prefix: str = "") -> Graph:
    _split_gemms(graph)
    for node in graph.graph:  # stale shapes of what lies between say other names
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    return Graph(base, kind, graph, _deferred(graph, snapshot, base, prefix), {})


def _transducer(model: Any, snapshot: Snapshot) -> tuple[Graph, ...]:
    """encoder_model, decoder_model for an answer's first tokens, decoder_with_past_model for the others: optimum's names."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    encoder = model.get_encoder()
    prefix = next(f"{name}." for name, module in model.named_modules() if module is encoder)
    given = _encoder_inputs(encoder)
    ids = torch.ones((2, 3), dtype=torch.long)
    with torch.no_grad():
        states = BaseModelOutput(last_hidden_state=encoder(**given).last_hidden_state)
        further = {"encoder_outputs": states, "attention_mask": given["attention_mask"]}
        cache = model(**further, decoder_input_ids=torch.ones((2, 5), dtype=torch.long), use_cache=True).past_key_values
    inside = _export(encoder, given)
    _name_inputs(inside, given)
    first = _export(model, {**further, "decoder_input_ids": ids})
    later = _export(model, {**further, "decoder_input_ids": ids, "past_key_values": cache})
    for graph in (first, later):
        _name_transducer(graph)
    return (
        _finished("encoder_model", "encoder-decoder", inside, snapshot, prefix=prefix),
        _finished("decoder_model", "encoder-decoder", first, snapshot),
        _finished("decoder_with_past_model", "encoder-decoder", later, snapshot),
    )


_CACHE = re.compile(r"(input\.|output\.)?past_key_values\.(self|cross)_attention_cache\.layers\.(\d+)\.(key|value)s")
_NAMED = {
    "decoder_input_ids": ("input_ids", ("batch_size", "decoder_sequence_length")),
    "attention_mask": ("encoder_attention_mask", ("batch_size", "encoder_sequence_length")),
    "encoder_outputs.last_hidden_state": ("encoder_hidden_states", ("batch_size", "encoder_sequence_length", None)),
    "logits": ("logits", ("batch_size", "decoder_sequence_length", None)),
}


def _name_transducer(model: ir.Model) -> None:
    """The ecosystem's names; of the later graph's outputs only what a token adds is kept."""
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    later = any(str(value.name).startswith("input.past") for value in model.graph.inputs)
    for value in list(model.graph.outputs):
        found = _CACHE.fullmatch(str(value.name))
        if value.name == "encoder_last_hidden_state" or (later and found is not None and found[2] == "cross"):
            model.graph.outputs.remove(value)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        if (found := _CACHE.fullmatch(str(value.name))) is not None:
            stem = "past_key_values" if found[1] == "input." else "present"
            part, axis = ("decoder", f"{stem}_length") if found[2] == "self" else ("encoder", "encoder_sequence_length")
            value.name = f"{stem}.{found[3]}.{part}.{found[4]}"
            value.shape = ir.Shape(["batch_size", value.shape[1], axis, value.shape[3]])
        elif value.name in _NAMED:
            value.name, axes = _NAMED[value.name]
            value.shape = ir.Shape([axis or size for axis, size in zip(axes, value.shape, strict=True)])
    passes.RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):
        if not value.uses() and not value.is_graph_output():
            model.graph.inputs.remove(value)


def load(snapshot: Snapshot, auto_class: str, *, filled: bool = True) -> Any:
    """transformers' model with the checkpoint's weights in float32, or with one random value for each tensor, which takes no
    memory."""
    import torch

    view = modules.view(snapshot.config, snapshot.weights)
    model = skeleton.build(snapshot.config, auto_class)
    model.tie_weights()
    model.set_attn_implementation("eager")  # a plain graph, which onnxruntime fuses better than what SDPA becomes
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if filled:
        state = skeleton.tensors(model, shapes, view, "")
    else:
        dice = torch.Generator().manual_seed(0)
        state = {name: torch.randn(1, generator=dice).expand(shape) for name, shape in shapes.items()}
        for name, shape in shapes.items():
            if skeleton.computes(model, name) is None:
                skeleton.stored(view, name, shape)
    model.load_state_dict(state | skeleton.buffers(model, view), strict=False, assign=True)
    model.tie_weights()
    return model


def _encoder_inputs(model: Any) -> dict[str, Any]:
    import inspect

    import torch

    ids, mask = torch.ones((2, 7), dtype=torch.long), torch.ones((2, 7), dtype=torch.long)
    mask[1, 5:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    return given | ({"token_type_ids": torch.zeros_like(ids)} if takes_types and model.config.model_type != "deberta" else {})


def _decoder_inputs(model: Any) -> dict[str, Any]:
    import torch
    from transformers import DynamicCache

    past, length = 5, 3
    with torch.no_grad():
        cache = model(torch.ones((2, past), dtype=torch.long), use_cache=True).past_key_values
    held = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        held.update(layer.keys[:, :, :past].clone(), layer.values[:, :, :past].clone(), index)
    mask = torch.ones((2, past + length), dtype=torch.long)
    mask[1, :3] = 0
    return {
        "input_ids": torch.ones((2, length), dtype=torch.long),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, past:],
        "past_key_values": held,
    }


def _export(model: Any, inputs: Mapping[str, Any]) -> ir.Model:
    from transformers.exporters import OnnxConfig, OnnxExporter

    try:
        with _silence():
            found: ir.Model = OnnxExporter().export(model, dict(inputs), OnnxConfig(dynamic=True)).program
    except Exception as error:  # torch.export's and onnxscript's share no base but this
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(f"transformers' exporter has no graph for {type(model).__name__}: {first}") from error
    return found


def _name_inputs(model: ir.Model, given: Mapping[str, Any]) -> None:
    """The ecosystem's names of inputs, outputs and their axes. given: what the graph was exported with."""
    import onnx_ir as ir

    caches = given["past_key_values"].layers if "past_key_values" in given else ()

    for value in (*model.graph.inputs, *model.graph.outputs):
        old = str(value.name)
        if old.startswith(("input.past_key_values.layers.", "output.past_key_values.layers.")):
            layer, part = old.split(".")[-2:]
            stem = "past_key_values" if old.startswith("input") else "present"
            value.name = f"{stem}.{layer}.{part.removesuffix('s')}"
            sequence = "past_sequence_length" if stem == "past_key_values" else "total_sequence_length"
            held = getattr(caches[int(layer)], part)
            value.shape = ir.Shape(["batch_size", held.shape[1], sequence, held.shape[3]])
        elif old == "attention_mask":
            value.shape = ir.Shape(["batch_size", "total_sequence_length" if caches else "sequence_length"])
        elif value.shape is not None:
            value.shape = ir.Shape(["batch_size", "sequence_length", *value.shape[2:]])


def _split_gemms(model: ir.Model) -> None:
    """GPT-2's linear layers as a product and a sum, as those of other models are."""
    import onnx_ir as ir

    for node in list(model.graph):
        plain = node.op_type == "Gemm" and not node.attributes.get_int("transA", 0) and not node.attributes.get_int("transB", 0)
        if plain and node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0:
            product = ir.node("MatMul", node.inputs[:2], name=f"{node.name}/MatMul", metadata_props=dict(node.metadata_props))
            product.outputs[0].name = f"{node.name}/product"
            model.graph.insert_before(node, product)
            replace(node, ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}/Add"))


def _deferred(model: ir.Model, snapshot: Snapshot, base: str, prefix: str) -> dict[str, Deferred]:
    """Its weights under the checkpoint's names, which the exporter leaves at the nodes that use them, without `prefix`."""
    import onnx_ir as ir

    view, found = modules.view(snapshot.config, snapshot.weights), dict[str, Deferred]()
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size <= SMALL:
            continue
        names = [f"{before}{name}" for name in (str(value.name), _scoped(value)) for before in (prefix, "") if name]
        known = next((name for name in names if name in view.infos), None)
        stored = view.moved.get(known, known) if known else None
        name = stored or f"{base}/{value.name}"
        if name not in model.graph.initializers:
            del model.graph.initializers[str(value.name)]
            value.name = name
            model.graph.register_initializer(value)
        values = recorded.of_values(tensor.numpy())
        found[str(value.name)] = Deferred(values.shape, (stored,) if stored else (), values.make)
    return found


def _scoped(value: ir.Value) -> str | None:
    """The name of the matrix of the module in which a value is multiplied by."""
    for use in value.uses():
        scopes = use.node.metadata_props.get(_SCOPES, "")
        inner = [scope for scope in scopes.strip("[]").replace("'", "").split(", ") if scope]
        if len(inner) > 1:
            return f"{inner[-2]}.weight"
    return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters' chatter goes nowhere."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
