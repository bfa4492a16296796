"""Quantised checkpoints as sources, packed here by plain loops that share nothing with the reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit import source
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import F32

Parts = dict[str, torch.Tensor]


def fields(codes: Any, bits: int) -> Any:
    """One row of codes as the words of their bit stream."""
    stream = "".join(format(int(code), f"0{bits}b")[::-1] for code in codes)
    return [int(stream[at : at + 32][::-1], 2) - (1 << 32 if stream[at + 31] == "1" else 0) for at in range(0, len(stream), 32)]


def packed(rows: Any, bits: int) -> torch.Tensor:
    return torch.tensor([fields(row, bits) for row in rows], dtype=torch.int32)


def rounded(weight: F32, bits: int, group: int, symmetric: bool, order: Any = None) -> tuple[Any, Any, Any, Any, F32]:
    """codes (out, in), scales and zeros (out, groups), group of every column, and the weights that these make."""
    out, width = weight.shape
    size = width if group == -1 else group
    groups = np.arange(width) // size if order is None else np.argsort(np.argsort(order)) // size
    scales, zeros = np.empty((out, width // size), np.float16), np.empty((out, width // size), np.int64)
    for at in range(width // size):
        part = weight[:, groups == at]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        most = np.maximum(-low, high)
        scales[:, at] = (2 * most if symmetric else high - low) / (2**bits - 1) + 1e-4
        zeros[:, at] = 2 ** (bits - 1) if symmetric else np.clip(np.round(-low / scales[:, at]), 1, 2**bits - 1)
    codes = np.clip(np.round(weight / scales[:, groups].astype(np.float32)) + zeros[:, groups], 0, 2**bits - 1).astype(np.int64)
    return codes, scales, zeros, groups, (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups].astype(np.float32)


def gptq(weight: F32, bits: int, group: int, version: int, symmetric: bool, ordered: bool) -> tuple[Parts, F32]:
    order = np.random.default_rng(5).permutation(weight.shape[1]) if ordered else None
    codes, scales, zeros, groups, wanted = rounded(weight, bits, group, symmetric, order)
    parts = {
        "qweight": packed(codes, bits).T.contiguous(),
        "qzeros": packed(zeros.T - (version == 1), bits),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return parts | ({"g_idx": torch.from_numpy(groups.astype(np.int32))} if ordered or bits == 8 else {}), wanted


def awq(weight: F32) -> tuple[Parts, F32]:
    codes, scales, zeros, _, wanted = rounded(weight, 4, 64, symmetric=False)

    def interleaved(rows: Any) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return packed([[row[at + column] for at in range(0, len(row), 8) for column in order] for row in rows], 4)

    return {
        "qweight": interleaved(codes.T),
        "qzeros": interleaved(zeros.T),
        "scales": torch.from_numpy(scales.T.copy()),
    }, wanted


def pack_quantized(weight: F32, bits: int, symmetric: bool, ordered: bool) -> tuple[Parts, F32]:
    order = np.random.default_rng(5).permutation(weight.shape[1]) if ordered else None
    codes, scales, zeros, groups, wanted = rounded(weight, bits, 32, symmetric, order)
    parts = {"weight_packed": packed(codes, bits), "weight_scale": torch.from_numpy(scales)}
    parts["weight_shape"] = torch.tensor(weight.shape)
    if not symmetric:
        parts["weight_zero_point"] = packed(zeros.T, bits).T.contiguous()
    return parts | ({"weight_g_idx": torch.from_numpy(groups.astype(np.int32))} if ordered else {}), wanted


def int_quantized(weight: F32) -> tuple[Parts, F32]:
    scale = torch.from_numpy(np.abs(weight).max(1, keepdims=True) / 127).bfloat16()
    codes = torch.clamp(torch.round(torch.from_numpy(weight) / scale.float()), -127, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, (codes.float() * scale.float()).numpy()


def float8(
    weight: F32, block: tuple[int, int] | None, per: str, name: str, kind: Any = torch.float8_e4m3fn
) -> tuple[Parts, F32]:
    most, top = torch.from_numpy(np.abs(weight)), torch.finfo(kind).max
    if block is not None:
        rows, columns = (-(-size // step) for size, step in zip(weight.shape, block, strict=True))
        scale = torch.zeros((rows, columns))
        for i in range(rows):
            for j in range(columns):
                scale[i, j] = most[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]].max() / top
        full = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: weight.shape[0], : weight.shape[1]]
    else:
        scale = (most.amax(1, keepdim=True) if per == "channel" else most.max().reshape(())) / top
        full = scale
    codes = (torch.from_numpy(weight) / full).to(kind)
    return {"weight": codes, name: scale, "input_scale": torch.tensor(1.5)}, (codes.float() * full).numpy()


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


def gptq_config(bits: int, group: int, form: str = "gptq") -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form}


CASES: dict[str, tuple[dict[str, Any], Callable[[F32], tuple[Parts, F32]]]] = {
    "gptq-2": (gptq_config(2, 32), lambda w: gptq(w, 2, 32, 1, symmetric=True, ordered=False)),
    "gptq-3": (gptq_config(3, 128), lambda w: gptq(w, 3, 128, 1, symmetric=True, ordered=True)),
    "gptq-4": (gptq_config(4, 128), lambda w: gptq(w, 4, 128, 1, symmetric=True, ordered=False)),
    "gptq-4-order": (gptq_config(4, 64), lambda w: gptq(w, 4, 64, 1, symmetric=False, ordered=True)),
    "gptq-4-v2": (gptq_config(4, 64, "gptq_v2"), lambda w: gptq(w, 4, 64, 2, symmetric=False, ordered=False)),
    "gptq-8-rows": (gptq_config(8, -1), lambda w: gptq(w, 8, -1, 1, symmetric=True, ordered=False)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM", "zero_point": True}, awq),
    "packed-4": (compressed("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=True),
                 lambda w: pack_quantized(w, 4, symmetric=True, ordered=False)),
    "packed-4-asymmetric": (compressed("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=False),
                            lambda w: pack_quantized(w, 4, symmetric=False, ordered=True)),
    "packed-8": (compressed("pack-quantized", num_bits=8, group_size=32, strategy="group"),
                 lambda w: pack_quantized(w, 8, symmetric=True, ordered=False)),
    "int8": (compressed("int-quantized", num_bits=8, strategy="channel"), int_quantized),
    "float8-channel": (compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
                       lambda w: float8(w, None, "channel", "weight_scale")),
    "fp8-block": ({"quant_method": "fp8", "weight_block_size": [48, 100]},
                  lambda w: float8(w, (48, 100), "", "weight_scale_inv")),
    "fp8-tensor": ({"quant_method": "fp8"}, lambda w: float8(w, None, "tensor", "weight_scale", torch.float8_e5m2)),
}  # fmt: skip


@pytest.fixture
def quantised(pico: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Path, dict[str, F32]]]:
    def make(case: str, **changes: Any) -> tuple[Path, dict[str, F32]]:
        """A pico llama whose linears are quantised, and what its tensors are then."""
        place = Path(shutil.copytree(pico("llama"), tmp_path / case))
        config, quantise = CASES[case]
        tensors, wanted = dict[str, torch.Tensor](), dict[str, F32]()
        for name, tensor in load_file(place / "model.safetensors").items():
            if "_proj" not in name:
                tensors[name], wanted[name] = tensor, tensor.numpy()
                continue
            parts, wanted[name] = quantise(tensor.numpy())
            tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        whole = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**whole, "quantization_config": {**config, **changes}}))
        return place, wanted

    return make


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_what_the_codes_make(case: str, quantised: Callable[..., tuple[Path, dict[str, F32]]]) -> None:
    place, wanted = quantised(case)
    found = source.describe(str(place))
    assert found.weights.infos.keys() == wanted.keys()
    assert found.quantised()
    for name, values in wanted.items():
        assert found.weights.infos[name].shape == values.shape
        np.testing.assert_allclose(found.weights.read(name), values, rtol=1e-6, atol=1e-9)
        assert np.array_equal(found.weights.read(name, 13, 45), found.weights.read(name)[13:45])
        assert np.array_equal(found.weights.read(name, 200), found.weights.read(name)[200:])
    found.weights.close()


def test_a_gguf_of_it_computes_what_the_codes_make(quantised: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from quantkit.engines import llama_cpp
    from quantkit.formats.gguf import layout, writer
    from quantkit.progress import silent
    from quantkit.targets import GgufTarget

    place, wanted = quantised("gptq-4")
    snapshot = source.fetch(source.describe(str(place)), silent)
    plan = layout.plan(GgufTarget(format="gguf", type="F32"), "", snapshot, "pico")
    artefact = writer.write(plan, snapshot, tmp_path, importance={}, threads=1, progress=silent)
    plain = {key: value for key, value in snapshot.config.items() if key != "quantization_config"}
    (place / "config.json").write_text(json.dumps(plain))
    save_file(
        {name: torch.from_numpy(values.copy()) for name, values in wanted.items()},
        place / "model.safetensors",
        {"format": "pt"},
    )
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(3, 300, 40)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    runner = llama_cpp.open_runner(artefact.path, context=64, threads=1, exact=True)
    found = runner.logits(tokens.tolist())
    runner.close()
    assert np.square(found - expected).sum() / np.square(expected).sum() < 1e-6


def test_what_is_not_supported_is_named(quantised: Any) -> None:
    for method in ("bitsandbytes", "hqq", "aqlm"):
        place, _ = quantised("gptq-4", quant_method=method)
        with pytest.raises(UnsupportedError, match=f"quantised by {method} is not supported .gptq, awq.*give the original"):
            source.describe(str(place))
        shutil.rmtree(place)
    place, _ = quantised("awq", version="gemv")
    with pytest.raises(UnsupportedError, match="AWQ of 4 bits in version gemv"):
        source.describe(str(place))
    place, _ = quantised("packed-4", format="nvfp4-pack-quantized")
    with pytest.raises(UnsupportedError, match="compressed-tensors' nvfp4-pack-quantized is not supported"):
        source.describe(str(place))
    place, _ = quantised("gptq-3", bits=5)
    with pytest.raises(UnsupportedError, match="GPTQ of 5 bits in format gptq"):
        source.describe(str(place))


def test_parts_that_lack_or_do_not_fit_are_named(quantised: Any) -> None:
    place, _ = quantised("gptq-4-order")
    path, name = place / "model.safetensors", "model.layers.0.mlp.up_proj"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if key != f"{name}.scales"}, path)
    with pytest.raises(SourceError, match=rf"{name} is quantised and lacks its scales"):
        source.describe(str(place))
    save_file(tensors | {f"{name}.scales": tensors[f"{name}.scales"][:, :-1].contiguous()}, path)
    with pytest.raises(SourceError, match=rf"{name} is quantised, and its parts do not fit each other \({name}.qweight \["):
        source.describe(str(place))
    save_file(tensors | {f"{name}.g_idx": tensors[f"{name}.g_idx"] + 1}, path)
    with pytest.raises(SourceError, match=rf"{name}.g_idx has 256 groups from 1 to 4 for 256 columns and 4 scales"):
        source.describe(str(place)).weights.read(f"{name}.weight")
