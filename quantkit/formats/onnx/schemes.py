"""The ways in which a matrix can be held in a graph, by the names of their types."""

from __future__ import annotations

import math
import re

from quantkit.formats.onnx.blocks import Blocks
from quantkit.formats.onnx.dynamic import Dynamic

Scheme = Blocks | Dynamic
SMOOTHING = "_smoothing"
_BYTES = {"UINT8": 1, "INT8": 1, "FLOAT": 4}
_SUFFIX = {"codes": "_quantized", "scales": "_scales", "zeros": "_zeros"}


def of_type(kind: str) -> Scheme | None:
    """The scheme that a row's type names; None of a float type."""
    if kind in (Dynamic(False).type, Dynamic(True).type):
        return Dynamic(kind == Dynamic(True).type)
    found = re.fullmatch(r"INT([48])B(\d+)(Z?)", kind)
    return Blocks(int(found[1]), int(found[2]), not found[3]) if found else None


def nbytes(scheme: Scheme, rows: int, width: int) -> int:
    """Of all parts of a matrix."""
    return sum(size(dtype, shape) for dtype, shape in scheme.parts(rows, width).values())


def size(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES[dtype]


def name(row: str, part: str) -> str:
    """What a part of a row's matrix is called in the graph."""
    return f"{row}{_SUFFIX[part]}" if part else row
