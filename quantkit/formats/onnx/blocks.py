"""Weight-only blocks: matrices as MatMulNBits, embeddings as GatherBlockQuantized, tied head and embedding as one table.

Operators and layouts: onnxruntime's docs/ContribOperators.md (com.microsoft). Codes are unsigned, (rows, blocks, bytes of a
block), two of 4 bits to a byte with the first below; without zeros their middle stands for 0. accuracy_level 4 (activations of
8 bits in blocks) is always said: without it there is no fast kernel on CPUs.
"""

from __future__ import annotations

import math
import re
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
_PARTS = {"codes": "UINT8", "scales": "FLOAT", "zeros": "UINT8"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a matrix is held. block: columns that share a scale."""

    bits: int
    block: int
    symmetric: bool

    @property
    def type(self) -> str:
        return f"INT{self.bits}B{self.block}" + ("" if self.symmetric else "Z")

    def shapes(self, rows: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of each part that is stored of a matrix (rows, width): codes uint8, scales float32, zeros uint8."""
        blocks = width // self.block
        found: dict[str, tuple[int, ...]] = {"codes": (rows, blocks, self.block * self.bits // 8), "scales": (rows, blocks)}
        return found if self.symmetric else found | {"zeros": (rows, -(-blocks * self.bits // 8))}

    def nbytes(self, rows: int, width: int) -> int:
        shapes = self.shapes(rows, width)
        return sum(math.prod(shape) * (4 if part == "scales" else 1) for part, shape in shapes.items())


def of_type(kind: str) -> Settings | None:
    """The settings that a row's type names, None for another."""
    found = re.fullmatch(r"INT([48])B(\d+)(Z?)", kind)
    return Settings(int(found[1]), int(found[2]), not found[3]) if found else None


def fitting(width: int, block: int) -> int | None:
    """The largest block up to `block` that divides the width; None where not even 16 does."""
    return next((size for size in (256, 128, 64, 32, 16) if size <= block and width % size == 0), None)


def encode(weight: F32, settings: Settings, importance: F32 | None, pool: Executor) -> dict[str, np.ndarray[Any, Any]]:
    """The stored parts of weight (rows, width), shapes as `Settings.shapes`. importance: (width,) what an error in a column
    costs."""
    cost = np.ones(weight.shape[1], np.float32) if importance is None else importance
    chosen = gptq.fit(weight, cost, bits=settings.bits, group=settings.block, symmetric=settings.symmetric, pool=pool)
    return parts(gptq.nearest(weight, chosen), chosen, settings)


def parts(codes: U8, chosen: gptq.Grid, settings: Settings) -> dict[str, np.ndarray[Any, Any]]:
    """The stored parts of codes (rows, width) uint8 on their grid."""
    shapes = settings.shapes(*codes.shape)
    zeros = chosen.zeros
    if settings.bits == 4:
        codes, zeros = _nibbles(codes), _nibbles(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))))
    found: dict[str, np.ndarray[Any, Any]] = {"codes": codes.reshape(shapes["codes"]), "scales": chosen.scales}
    return found if settings.symmetric else found | {"zeros": zeros}


def _nibbles(codes: U8) -> U8:
    found: U8 = codes[:, 0::2] | np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    return found


def decode(stored: Mapping[str, np.ndarray[Any, Any]], settings: Settings) -> F32:
    """What the parts of a matrix stand for, float32 (rows, width): the inverse of `encode`."""
    codes, blocks = stored["codes"], stored["scales"].shape[1]
    zeros = stored.get("zeros", np.full(stored["scales"].shape, 1 << (settings.bits - 1), np.uint8))
    if settings.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1)
        zeros = zeros if settings.symmetric else np.stack([zeros & 15, zeros >> 4], -1).reshape(len(zeros), -1)[:, :blocks]
    found: F32 = codes.reshape(len(codes), blocks, settings.block).astype(np.float32)
    found -= zeros[:, :, None]
    found *= stored["scales"][:, :, None]
    return found.reshape(len(found), -1)


def names(row: str, settings: Settings) -> dict[str, str]:
    """The parts' names in the graph."""
    said = {"codes": f"{row}_Q{settings.bits}", "scales": f"{row}_scales", "zeros": f"{row}_zp"}
    return {part: said[part] for part in _PARTS if part != "zeros" or not settings.symmetric}


def dtypes() -> Mapping[str, str]:
    """Each part's onnx_ir.DataType."""
    return _PARTS


def multiply(node: ir.Node, held: Mapping[str, ir.Value], settings: Settings, rows: int, width: int) -> None:
    """Put MatMulNBits in a MatMul's place; held: part -> its value."""
    import onnx_ir as ir

    attributes = {"K": width, "N": rows, "bits": settings.bits, "block_size": settings.block, "accuracy_level": ACCURACY}
    inputs = [node.inputs[0], *(held[part] for part in _PARTS if part in held)]
    _replace(node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=f"{node.name}_Q{settings.bits}"))


def look_up(node: ir.Node, held: Mapping[str, ir.Value], settings: Settings, rows: int, width: int) -> None:
    """Put GatherBlockQuantized in an embedding's Gather's place. Codes stay as MatMulNBits holds them, so that a tied head
    shares them; a Reshape makes the table of them."""
    import onnx_ir as ir

    ids = node.inputs[1]
    graph = node.graph
    assert graph is not None
    flat = _constant(graph, f"{node.name}/table", [rows, width * settings.bits // 8])
    table = ir.node("Reshape", [held["codes"], flat], name=f"{node.name}/Reshape")
    attributes = {"bits": settings.bits, "block_size": settings.block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [table.outputs[0], ids, held["scales"], *([held["zeros"]] if "zeros" in held else [])]
    found = ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=f"{node.name}_Q{settings.bits}")
    graph.insert_before(node, table)
    _replace(node, found)


def _constant(graph: Any, name: str, values: list[int]) -> ir.Value:
    import onnx_ir as ir

    found = ir.Value(name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(ir.DataType.INT64))
    found.const_value = ir.tensor(np.array(values, np.int64), name=name)
    graph.register_initializer(found)
    return found


def _replace(node: ir.Node, other: ir.Node) -> None:
    import onnx_ir as ir

    graph, before, after = node.graph, node.outputs[0], other.outputs[0]
    assert graph is not None
    after.name, after.type, after.shape = before.name, before.type, before.shape
    graph.insert_before(node, other)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(node, safe=True)
