"""Dynamic W8A8: weights of 7 bits by output, activations quantised as they come: DynamicQuantizeLinear and MatMulInteger.

An activation of 8 bits times a signed weight of 8, twice, overflows the 16-bit sums of CPUs without VNNI: weights keep to
-64..63 (reduced range), which no CPU saturates. One scale serves all channels of an activation, so that a few large channels
cost all others their digits: where activations are known, inputs are multiplied by `smoothing` and weights divided by it
(SmoothQuant, Xiao et al., 2022). Products of one input share its smoothing and its codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.formats.onnx import blocks
from quantkit.values import F32

if TYPE_CHECKING:
    import onnx_ir as ir

LOWEST, HIGHEST = -64, 63
STRENGTH = 0.75  # of the smoothing: 0 leaves activations as they are, 1 makes their channels alike
_TINY = np.float32(1e-20)


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Codes of 7 bits, one scale for each row of the matrix. smoothed: its input is multiplied by a vector before."""

    smoothed: bool = False

    @property
    def type(self) -> str:
        return "INT7S" if self.smoothed else "INT7"

    def parts(self, rows: int, width: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """As of Blocks.parts; codes lie as activations meet them, (width, rows)."""
        return {"codes": ("INT8", (width, rows)), "scales": ("FLOAT", (rows,))}

    def encode(self, weight: F32, smoothing: F32 | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """The parts of weight (rows, width). smoothing: (width,) what its input is multiplied by."""
        even = weight if smoothing is None else weight / smoothing
        scales = np.maximum(np.abs(even).max(1) / HIGHEST, _TINY)
        codes = np.clip(np.rint(even / scales[:, None]), LOWEST, HIGHEST).astype(np.int8)
        return {"codes": codes.T, "scales": scales}

    def decode(self, stored: Mapping[str, np.ndarray[Any, Any]]) -> F32:
        """As of Blocks.decode; with its "smoothing", if it has one."""
        found: F32 = stored["codes"].T.astype(np.float32) * stored["scales"][:, None]
        return found * stored["smoothing"] if "smoothing" in stored else found

    def multiply(self, node: ir.Node, held: Mapping[str, ir.Value], rows: int, width: int) -> None:
        """Put the integer product in a MatMul's place."""
        import onnx_ir as ir

        del rows, width
        graph, given = node.graph, node.inputs[0]
        assert graph is not None
        assert given is not None
        codes, scale, zero = _quantised(node, given, held.get("smoothing"))
        product = ir.node("MatMulInteger", [codes, held["codes"], zero], name=f"{node.name}/Product")
        whole = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=f"{node.name}/Cast")
        scales = ir.node("Mul", [scale, held["scales"]], name=f"{node.name}/Scales")
        for each in (product, whole, scales):
            graph.insert_before(node, each)
        blocks.replace(node, ir.node("Mul", [whole.outputs[0], scales.outputs[0]], name=f"{node.name}_Q8"))


def smoothing(weights: Sequence[F32], squares: F32) -> F32:
    """What an input (.., width) is multiplied by, float32 (width,). weights: the matrices (rows, width) that it meets; squares:
    its E[x^2] by channel."""
    greatest = np.max([np.abs(weight).max(0) for weight in weights], 0)
    spread = np.sqrt(np.maximum(squares, _TINY)) ** np.float32(STRENGTH)
    found = np.maximum(greatest, _TINY) ** np.float32(1 - STRENGTH) / spread
    found[(squares <= 0) | (greatest <= 0)] = 1
    centred: F32 = (found / np.exp(np.log(found).mean())).astype(np.float32)
    return centred


def _quantised(node: ir.Node, given: ir.Value, smoothing: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The codes, scale and zero of an activation, made once."""
    import onnx_ir as ir

    graph = node.graph
    assert graph is not None
    even = given
    if smoothing is not None:
        known = [use.node for use in given.uses() if use.node.op_type == "Mul" and use.node.inputs[1] is smoothing]
        mul = known[0] if known else ir.node("Mul", [given, smoothing], name=f"{given.name}/Smooth")
        if not known:
            mul.outputs[0].name = f"{given.name}/even"
            graph.insert_before(node, mul)
        even = mul.outputs[0]
    for use in even.uses():
        if use.node.op_type == "DynamicQuantizeLinear":
            codes, scale, zero = use.node.outputs
            return codes, scale, zero
    made = ir.node("DynamicQuantizeLinear", [even], num_outputs=3, name=f"{given.name}/Quantize")
    for output, part in zip(made.outputs, ("codes", "scale", "zero"), strict=True):
        output.name = f"{given.name}/{part}"
    graph.insert_before(node, made)
    codes, scale, zero = made.outputs
    return codes, scale, zero
