"""Weight-only blocks: matrices as MatMulNBits, embeddings as GatherBlockQuantized, tied head and embedding as one table.

Operators and layouts: onnxruntime's docs/ContribOperators.md (com.microsoft). Codes are unsigned, (rows, blocks, bytes of a
block), two of 4 bits to a byte with the first below; without zeros their middle stands for 0. accuracy_level 4 (activations of
8 bits in blocks) is always said: without it there is no fast kernel on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.kernels import gptq
from quantkit.values import F32, U8

if TYPE_CHECKING:
    import onnx_ir as ir

ACCURACY = 4
DOMAIN = "com.microsoft"
SIZES = (256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Codes of `bits` bits; `block` columns share a scale, and a zero unless they are symmetric."""

    bits: int
    block: int
    symmetric: bool

    @property
    def type(self) -> str:
        return f"INT{self.bits}B{self.block}" + ("" if self.symmetric else "Z")

    def parts(self, rows: int, width: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What is stored of a matrix (rows, width): part -> its onnx_ir.DataType and shape."""
        blocks = width // self.block
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("UINT8", (rows, blocks, self.block * self.bits // 8)),
            "scales": ("FLOAT", (rows, blocks)),
        }
        return found if self.symmetric else found | {"zeros": ("UINT8", (rows, -(-blocks * self.bits // 8)))}

    def encode(self, weight: F32, importance: F32 | None, pool: Executor) -> dict[str, np.ndarray[Any, Any]]:
        """The parts of weight (rows, width). importance: (width,) what an error in a column costs."""
        cost = np.ones(weight.shape[1], np.float32) if importance is None else importance
        chosen = gptq.fit(weight, cost, bits=self.bits, group=self.block, symmetric=self.symmetric, pool=pool)
        return self.pack(gptq.nearest(weight, chosen), chosen)

    def pack(self, codes: U8, chosen: gptq.Grid) -> dict[str, np.ndarray[Any, Any]]:
        """The parts of codes (rows, width) uint8 on their grid."""
        shapes, zeros = self.parts(*codes.shape), chosen.zeros
        if self.bits == 4:
            codes, zeros = _nibbles(codes), _nibbles(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))))
        found: dict[str, np.ndarray[Any, Any]] = {"codes": codes.reshape(shapes["codes"][1]), "scales": chosen.scales}
        return found if self.symmetric else found | {"zeros": zeros}

    def decode(self, stored: Mapping[str, np.ndarray[Any, Any]]) -> F32:
        """What the parts of a matrix stand for, float32 (rows, width): the inverse of `encode`."""
        codes, blocks = stored["codes"], stored["scales"].shape[1]
        zeros = stored.get("zeros", np.full(stored["scales"].shape, 1 << (self.bits - 1), np.uint8))
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1)
            if not self.symmetric:
                zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(len(zeros), -1)[:, :blocks]
        found: F32 = codes.reshape(len(codes), blocks, self.block).astype(np.float32)
        found -= zeros[:, :, None]
        found *= stored["scales"][:, :, None]
        return found.reshape(len(found), -1)

    def multiply(self, node: ir.Node, held: Mapping[str, ir.Value], rows: int, width: int) -> None:
        """Put MatMulNBits in a MatMul's place; held: part -> its value."""
        import onnx_ir as ir

        attributes = {"K": width, "N": rows, "bits": self.bits, "block_size": self.block, "accuracy_level": ACCURACY}
        inputs = [node.inputs[0], *held.values()]
        replace(node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=f"{node.name}_Q{self.bits}"))

    def look_up(self, node: ir.Node, held: Mapping[str, ir.Value], rows: int, width: int) -> None:
        """Put GatherBlockQuantized in an embedding's Gather's place. Codes stay as MatMulNBits holds them, so that a tied head
        shares them; a Reshape makes the table of them."""
        import onnx_ir as ir

        graph = node.graph
        assert graph is not None
        flat = constant(graph, f"{node.name}/table", np.array([rows, width * self.bits // 8], np.int64))
        table = ir.node("Reshape", [held["codes"], flat], name=f"{node.name}/Reshape")
        attributes = {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}
        inputs = [table.outputs[0], node.inputs[1], *(value for part, value in held.items() if part != "codes")]
        found = ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=f"{node.name}_Q{self.bits}")
        graph.insert_before(node, table)
        replace(node, found)


def fitting(width: int, block: int) -> int | None:
    """The largest block up to `block` that divides the width; None where not even 16 does."""
    return next((size for size in SIZES if size <= block and width % size == 0), None)


def _nibbles(codes: U8) -> U8:
    found: U8 = codes[:, 0::2] | np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    return found


def constant(graph: Any, name: str, values: np.ndarray[Any, Any]) -> ir.Value:
    """An initializer of the graph's own, made once."""
    import onnx_ir as ir

    found: ir.Value | None = graph.initializers.get(name)
    if found is None:
        tensor = ir.tensor(values, name=name)
        found = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(found)
    return found


def replace(node: ir.Node, other: ir.Node) -> None:
    """Put another node in the place of one of a single output."""
    import onnx_ir as ir

    graph, before, after = node.graph, node.outputs[0], other.outputs[0]
    assert graph is not None
    after.name, after.type, after.shape = before.name, before.type, before.shape
    graph.insert_before(node, other)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(node, safe=True)
