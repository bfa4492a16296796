"""The graphs of a model: of genai's builder where it knows the model, else of transformers' own exporter."""

from __future__ import annotations

from quantkit import skeleton
from quantkit.errors import UnsupportedError
from quantkit.formats.onnx import builder, exported
from quantkit.formats.onnx.graph import Graph
from quantkit.values import Snapshot


def build(snapshot: Snapshot, *, filled: bool = True) -> tuple[Graph, ...]:
    """All graphs of a model; those that are not `filled` are good for a plan alone, and need no weights.

    Raises UnsupportedError for one that neither route exports.
    """
    if skeleton.kind(snapshot.config) == "decoder":
        try:
            return (builder.build(snapshot),)
        except UnsupportedError:  # it has no graph for the architecture
            return exported.build(snapshot, filled=filled)
    return exported.build(snapshot, filled=filled)
