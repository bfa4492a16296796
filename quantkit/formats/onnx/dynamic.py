"""Dynamic W8A8: weights of 8 bits by output, activations quantised as they come, by DynamicQuantizeLinear and MatMulInteger.

Weights are unsigned around 128: a signed weight beside an unsigned activation saturates in the 16-bit sums of CPUs without
VNNI (255 * 127 twice), an unsigned pair goes through another kernel and does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.formats.onnx import blocks
from quantkit.kernels import gptq
from quantkit.values import F32

if TYPE_CHECKING:
    import onnx_ir as ir

MIDDLE = 128


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Codes of 8 bits, one scale for each row of the matrix."""

    @property
    def type(self) -> str:
        return "U8U8"

    def parts(self, rows: int, width: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """As of Blocks.parts; codes lie as activations meet them, (width, rows)."""
        return {"codes": ("UINT8", (width, rows)), "scales": ("FLOAT", (rows,))}

    def encode(self, weight: F32, importance: F32 | None, pool: Executor) -> dict[str, np.ndarray[Any, Any]]:
        """As of Blocks.encode."""
        cost = np.ones(weight.shape[1], np.float32) if importance is None else importance
        chosen = gptq.fit(weight, cost, bits=8, group=-1, symmetric=True, pool=pool)
        return {"codes": gptq.nearest(weight, chosen).T, "scales": chosen.scales[:, 0]}

    def decode(self, stored: Mapping[str, np.ndarray[Any, Any]]) -> F32:
        """As of Blocks.decode."""
        found: F32 = (stored["codes"].T.astype(np.float32) - MIDDLE) * stored["scales"][:, None]
        return found

    def multiply(self, node: ir.Node, held: Mapping[str, ir.Value], rows: int, width: int) -> None:
        """Put the integer product in a MatMul's place. Products of one input share its quantisation."""
        import onnx_ir as ir

        del rows, width
        graph, given = node.graph, node.inputs[0]
        assert graph is not None
        assert given is not None
        codes, scale, zero = _quantised(node, given)
        middle = blocks.constant(graph, "middle_of_uint8", np.array(MIDDLE, np.uint8))
        product = ir.node("MatMulInteger", [codes, held["codes"], zero, middle], name=f"{node.name}/Product")
        whole = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=f"{node.name}/Cast")
        scales = ir.node("Mul", [scale, held["scales"]], name=f"{node.name}/Scales")
        for each in (product, whole, scales):
            graph.insert_before(node, each)
        blocks.replace(node, ir.node("Mul", [whole.outputs[0], scales.outputs[0]], name=f"{node.name}_U8"))


def _quantised(node: ir.Node, given: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The codes, scale and zero of an activation."""
    import onnx_ir as ir

    graph = node.graph
    assert graph is not None
    for use in given.uses():
        if use.node.op_type == "DynamicQuantizeLinear":
            codes, scale, zero = use.node.outputs
            return codes, scale, zero
    made = ir.node("DynamicQuantizeLinear", [given], num_outputs=3, name=f"{given.name}/Quantize")
    for output, part in zip(made.outputs, ("codes", "scale", "zero"), strict=True):
        output.name = f"{given.name}/{part}"
    graph.insert_before(node, made)
    codes, scale, zero = made.outputs
    return codes, scale, zero
