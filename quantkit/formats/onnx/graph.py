"""A model's graph without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit import arch
from quantkit.formats.onnx.recorded import Deferred

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Graph:
    """base: its file's name without what a layout adds. deferred: tensor of float32 -> how it is made. documents: what its
    runtime reads beside it."""

    base: str
    kind: arch.Kind
    model: ir.Model
    deferred: Mapping[str, Deferred]
    documents: Mapping[str, str]
