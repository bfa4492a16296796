"""A model's graph without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantkit import arch
from quantkit.formats.onnx.recorded import Deferred

if TYPE_CHECKING:
    import onnx_ir as ir


Padding = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Graph:
    """base: its file's name without what a layout adds. deferred: tensor of float32 -> how it is made. documents: what its
    runtime reads beside it. padding: the side on which the shorter texts of a batch are filled up."""

    base: str
    kind: arch.Kind
    model: ir.Model
    deferred: Mapping[str, Deferred]
    documents: Mapping[str, str]
    padding: Padding
