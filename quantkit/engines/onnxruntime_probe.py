"""What integer products come to in onnxruntime on this CPU: an unsigned times a signed byte may saturate on the way."""

from __future__ import annotations

import numpy as np

from quantkit.engines import onnxruntime_decoder

WIDTH = 64


def saturates(weight: int) -> bool:
    """Whether WIDTH products of 255 with a signed weight (-128..127) sum up to less than they should."""
    import onnx_ir as ir

    codes = ir.tensor(np.full((WIDTH, 16), weight, np.int8), name="codes")
    held = ir.Value(name="codes", shape=ir.Shape([WIDTH, 16]), type=ir.TensorType(ir.DataType.INT8), const_value=codes)
    given = ir.Value(name="given", shape=ir.Shape([1, WIDTH]), type=ir.TensorType(ir.DataType.UINT8))
    node = ir.node("MatMulInteger", [given, held])
    node.outputs[0].name, node.outputs[0].type = "product", ir.TensorType(ir.DataType.INT32)
    node.outputs[0].shape = ir.Shape([1, 16])
    graph = ir.Graph([given], node.outputs, nodes=[node], initializers=[held], opset_imports={"": 20}, name="probe")
    proto = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    found = onnxruntime_decoder.session(proto, threads=1).run(None, {"given": np.full((1, WIDTH), 255, np.uint8)})[0]
    return bool((found != 255 * weight * WIDTH).any())
