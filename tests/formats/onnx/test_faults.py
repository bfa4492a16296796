"""Faults put into a graph or a file are caught: by parity, by integrity, by the gates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quantkit import likeness, serving, source
from quantkit.checks import reopened
from quantkit.formats.onnx import assembly, graphs, layout, reader, writer
from quantkit.progress import silent
from quantkit.targets import OnnxTarget
from quantkit.values import F32, Row, Snapshot


def written(snapshot: Snapshot, place: Path, target: OnnxTarget = serving.FLOAT) -> tuple[Path, tuple[Row, ...]]:
    plan = layout.plan(target, "", snapshot, "model")
    artefact = writer.write(plan, snapshot, place, importance={}, solved=None, threads=1, progress=silent)
    return artefact.path, plan.rows


def change(path: Path, fault: Callable[[ir.Model], None]) -> None:
    model = ir.load(path)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]
    fault(model)
    for old in path.parent.glob("model.onnx*"):
        old.unlink()
    ir.save(model, path)


def drop_mask(model: ir.Model) -> None:
    """Everything is attended to."""
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    uses = list(mask.uses())
    shape = ir.node("Shape", [mask], name="mask_shape")
    ones = ir.node("ConstantOfShape", shape.outputs, {"value": ir.tensor(np.array([1], np.int64))}, name="mask_ones")
    for use in uses:
        use.node.replace_input_with(use.idx, ones.outputs[0])
    model.graph.insert_before(model.graph[0], [shape, ones])


def swap_caches(model: ir.Model) -> None:
    """The second layer gets the first one's keys."""
    first, second = (next(v for v in model.graph.inputs if v.name == f"past_key_values.{n}.key") for n in (0, 1))
    first.name, second.name = "other", first.name
    first.name = "past_key_values.1.key"


def other_head(model: ir.Model) -> None:
    """The head's rows are in another order than the embedding's."""
    node = next(node for node in model.graph if node.outputs[0].name == "logits")
    held = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
    name = "another_head"
    tensor = ir.tensor(np.ascontiguousarray(held[:, ::-1]), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)


def zero_layer(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if name.startswith("model.layers.1.mlp.down_proj"):
            value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "fault"), [("bert", drop_mask), ("llama", swap_caches), ("llama", other_head), ("llama", zero_layer)]
)
def test_parity_tells_another_graph(
    name: str, fault: Callable[[ir.Model], None], pico: Callable[[str], Path], tmp_path: Path
) -> None:
    snapshot = source.describe(str(pico(name)))
    path, _ = written(snapshot, tmp_path)
    assert likeness.check(snapshot, path, threads=1, what="sound").verdict == "pass"
    change(path, fault)
    assert likeness.check(snapshot, path, threads=1, what="faulty").verdict == "fail"


def integrity(snapshot: Snapshot, path: Path, rows: tuple[Row, ...]) -> Any:
    (graph,) = graphs.build(snapshot)
    turned = {row.name for row in rows if row.type != "F32"} & assembly.transposed(graph.model)

    def source_rows(row: Row, start: int, stop: int) -> F32:
        made = graph.deferred[row.name].make()
        return (made.T if row.name in turned else made)[start:stop]

    return reopened.check(reader.read([path], rows), rows, source_rows, lambda _: np.zeros(0, np.uint8), {})[0]


def double_scales(model: ir.Model) -> None:
    value = next(value for name, value in model.graph.initializers.items() if name.endswith("_scales"))
    value.const_value = ir.tensor(2 * value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]


def not_a_number(model: ir.Model) -> None:
    value = next(value for name, value in model.graph.initializers.items() if name.endswith("_scales"))
    value.const_value = ir.tensor(np.full_like(value.const_value.numpy(), np.nan), name=value.name)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (double_scales, "relative error 1"),
        (not_a_number, "NaN or infinity"),
        (zero_layer, "down_proj.MatMul.weight: relative error"),
    ],
)
def test_integrity_tells_other_values(
    fault: Callable[[ir.Model], None], said: str, pico: Callable[[str], Path], tmp_path: Path
) -> None:
    snapshot = source.describe(str(pico("llama")))
    path, rows = written(snapshot, tmp_path, OnnxTarget(format="onnx"))
    assert integrity(snapshot, path, rows).verdict == "pass"
    change(path, fault)
    found = integrity(snapshot, path, rows)
    assert found.verdict == "fail"
    assert said in found.summary
