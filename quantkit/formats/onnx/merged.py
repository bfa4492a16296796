"""Two decoders in one graph, as transformers.js wants them: optimum's decoder_model_merged.

`use_cache_branch` chooses between an answer's first tokens and those after; weights are of the graph around both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

NAME = "decoder_model_merged"
SWITCH = "use_cache_branch"


def merge(first: ir.Model, later: ir.Model) -> ir.Model:
    """The two models as the branches of one `If`; both are used up.

    What the cache holds of the encoder's states passes the later branch as it came.
    """
    import onnx_ir as ir

    switch = ir.Value(name=SWITCH, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    inputs = {str(value.name): value for model in (later, first) for value in model.graph.inputs}
    weights = {str(name): value for model in (later, first) for name, value in model.graph.initializers.items()}
    names = [str(value.name) for value in first.graph.outputs]
    outputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in first.graph.outputs]
    branches = [_branch(model, part, names, inputs, weights) for model, part in ((later, "later"), (first, "first"))]
    chosen = ir.node("If", [switch], {"then_branch": branches[0], "else_branch": branches[1]}, outputs=outputs, name="cached")
    opsets = first.graph.opset_imports | later.graph.opset_imports
    graph = ir.Graph(
        [*inputs.values(), switch],
        outputs,
        nodes=[chosen],
        initializers=list(weights.values()),
        opset_imports=opsets,
        name="merged",
    )
    merged = ir.Model(graph, ir_version=first.ir_version)
    merged.producer_name = first.producer_name
    return merged


def _branch(
    model: ir.Model, part: str, names: list[str], inputs: Mapping[str, ir.Value], weights: Mapping[str, ir.Value]
) -> ir.Graph:
    """A model's nodes with the outputs `names`, over the inputs and weights of the graph around it."""
    import onnx_ir as ir

    graph = model.graph
    made = {str(value.name): value for value in graph.outputs}
    nodes = list(graph)
    outputs = [made.get(name) or _passed(nodes, inputs[name.replace("present", "past_key_values", 1)], name) for name in names]
    outer = [(value, inputs[str(value.name)]) for value in graph.inputs]
    outer += [(value, weights[str(name)]) for name, value in graph.initializers.items()]
    graph.outputs.clear()
    graph.inputs.clear()
    graph.initializers.clear()
    graph.remove(list(graph))
    for inner, around in outer:
        if inner is not around:
            ir.convenience.replace_all_uses_with(inner, around)
    for node in nodes:
        node.name = f"{part}/{node.name}"
        for value in node.outputs:
            value.name = f"{part}/{value.name}"
    return ir.Graph([], outputs, nodes=nodes, name=part)


def _passed(nodes: list[ir.Node], value: ir.Value, name: str) -> ir.Value:
    import onnx_ir as ir

    node = ir.node("Identity", [value], name=name)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
    nodes.append(node)
    return node.outputs[0]
