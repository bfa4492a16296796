"""How matrices are held in a graph: onnxruntime computes with the parts what their decoding says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest

from quantkit.engines import onnxruntime_decoder, onnxruntime_probe
from quantkit.formats.onnx import dynamic, layout, recorded, schemes, stored
from quantkit.formats.onnx.blocks import Blocks, fitting
from quantkit.formats.onnx.dynamic import Dynamic
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.schemes import Scheme
from quantkit.values import F32, Row

BLOCKS = [Blocks(bits, block, symmetric) for bits in (4, 8) for block in (16, 32) for symmetric in (True, False)]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def weights(rows: int, width: int) -> F32:
    return np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)


def graph(table: F32) -> Graph:
    """input_ids -> rows of a table -> times the same table: a tied head and embedding."""
    rows, width = table.shape
    value = ir.Value(
        name="table",
        shape=ir.Shape([rows, width]),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(table, name="table"),
    )
    ids = ir.Value(name="input_ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    found = ir.node("Gather", [value, ids], name="find")
    turned = ir.node("Transpose", [value], {"perm": [1, 0]}, name="turn")
    product = ir.node("MatMul", [found.outputs[0], turned.outputs[0]], name="multiply")
    for node, name, shape in ((found, "found", ["n", width]), (product, "product", ["n", rows])):
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(shape)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    inside = ir.Graph(
        [ids],
        [found.outputs[0], product.outputs[0]],
        nodes=[found, turned, product],
        initializers=[value],
        opset_imports={"": 20},
        name="tied",
    )
    made = recorded.of_values(table)
    return Graph("model", "encoder", ir.Model(inside, ir_version=10), {"table": made}, {})


def run(table: F32, scheme: Scheme, pool: Executor) -> tuple[F32, F32, F32]:
    """What is looked up, what it is multiplied to, and the table decoded."""
    whole = graph(table)
    row = Row("table", "table", table.shape, "F32", scheme.type, scheme.type, "", schemes.nbytes(scheme, *table.shape))
    parts = scheme.encode(table, None, pool) if isinstance(scheme, Blocks) else scheme.encode(table)
    assert {name: array.shape for name, array in parts.items()} == {
        name: shape for name, (_, shape) in scheme.parts(*table.shape).items()
    }
    content = layout.assemble([whole], [row], lambda each: ir.Tensor(np.ascontiguousarray(parts[each.part]), name=each.name))
    assert len(content) == len(layout.assemble([whole], [row], stored.empty))  # what a plan says of its size
    session = onnxruntime_decoder.session(content, threads=1)
    found, product = session.run(None, {"input_ids": np.arange(len(table), dtype=np.int64)})
    return found, product, scheme.decode(parts)


@pytest.mark.parametrize("scheme", BLOCKS, ids=lambda scheme: scheme.type)
@pytest.mark.parametrize("width", [64, 96, 16 * 5 * 2])
def test_onnxruntime_decodes_a_tied_table_as_we_do(scheme: Blocks, width: int, pool: Executor) -> None:
    found, product, decoded = run(weights(48, width), scheme, pool)
    np.testing.assert_allclose(found, decoded, rtol=1e-6, atol=1e-7)
    wanted = found @ decoded.T  # activations are rounded to 8 bits in blocks
    assert np.abs(product - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("scheme", BLOCKS, ids=lambda scheme: scheme.type)
def test_types_name_their_schemes(scheme: Blocks) -> None:
    assert schemes.of_type(scheme.type) == scheme


def test_blocks_of_8_bits_are_near(pool: Executor) -> None:
    table = weights(48, 64)
    for scheme, most in ((Blocks(8, 32, True), 0.006), (Blocks(4, 32, False), 0.09)):
        decoded = scheme.decode(scheme.encode(table, None, pool))
        assert np.linalg.norm(decoded - table) < most * np.linalg.norm(table)


def test_importance_moves_the_error_to_columns_that_matter_less(pool: Executor) -> None:
    table, importance = weights(64, 64), np.where(np.arange(64) < 32, 100, 0.01).astype(np.float32)
    scheme = Blocks(4, 64, True)
    errors = [np.square(scheme.decode(scheme.encode(table, cost, pool)) - table).sum(0) for cost in (None, importance)]
    assert errors[1][:32].sum() < errors[0][:32].sum()


def test_blocks_divide_the_width() -> None:
    assert [fitting(width, 32) for width in (576, 48, 40)] == [32, 16, None]
    assert fitting(576, 256) == 64


def product(smoothed: bool) -> tuple[F32, F32, F32]:
    """A dynamic product, the same computed in numpy by the operators' definitions, and the float one."""
    dice = np.random.default_rng(0)
    weight, x = weights(48, 64), dice.standard_normal((5, 64)).astype(np.float32)
    x[:, 3] *= 300  # an outlier channel
    smoothing = dynamic.smoothing([weight], np.square(x).mean(0)) if smoothed else None
    scheme = Dynamic(smoothed)
    parts = scheme.encode(weight, smoothing)
    given = ir.Value(name="x", shape=ir.Shape(["n", 64]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [given, given], name="multiply")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    held = {name: value(f"w_{name}", array) for name, array in parts.items()}
    if smoothing is not None:
        held["smoothing"] = value("smoothing", smoothing)
    inside = ir.Graph(
        [given], node.outputs, nodes=[node], initializers=list(held.values()), opset_imports={"": 20}, name="product"
    )
    scheme.multiply(node, held, *weight.shape)
    inside.sort()
    proto = ir.to_proto(ir.Model(inside, ir_version=10)).SerializeToString()
    found = onnxruntime_decoder.session(proto, threads=1).run(None, {"x": x})[0]
    even = x * smoothing if smoothing is not None else x
    low, high = min(even.min(), 0), max(even.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(even / scale) + zero, 0, 255) - zero
    return found, codes @ parts["codes"].astype(np.float32) * scale * parts["scales"], x @ weight.T


def value(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


@pytest.mark.parametrize("smoothed", [False, True])
def test_a_dynamic_product_is_exact_in_whole_numbers(smoothed: bool) -> None:
    found, wanted, _ = product(smoothed)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-4)


def test_smoothing_saves_the_channels_beside_an_outlier() -> None:
    errors = [np.linalg.norm(found - plain) / np.linalg.norm(plain) for found, _, plain in (product(False), product(True))]
    assert errors[1] < 0.8 * errors[0]


def test_dynamic_weights_saturate_on_no_cpu() -> None:
    greatest = max(abs(dynamic.LOWEST), dynamic.HIGHEST)
    assert 2 * 255 * greatest <= np.iinfo(np.int16).max  # two products are added in 16 bits where there is no VNNI
    assert not onnxruntime_probe.saturates(dynamic.LOWEST)
    assert not onnxruntime_probe.saturates(dynamic.HIGHEST)
    extreme = Dynamic().encode(np.array([[3e38, -3e38, 1.0], [0, 0, 0]], np.float32))
    assert extreme["codes"].min() >= dynamic.LOWEST
    assert np.isfinite(Dynamic().decode(extreme)).all()
