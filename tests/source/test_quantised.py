"""Quantised checkpoints as sources, packed here by plain loops that share nothing with the reader."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit import source
from quantkit.errors import SourceError, UnsupportedError, WeightError
from quantkit.values import F32

Parts = dict[str, torch.Tensor]


def fields(codes: Any, bits: int) -> Any:
    """One row of codes as the words of their bit stream."""
    stream = "".join(format(int(code), f"0{bits}b")[::-1] for code in codes)
    return [int(stream[at : at + 32][::-1], 2) - (1 << 32 if stream[at + 31] == "1" else 0) for at in range(0, len(stream), 32)]


def packed(rows: Any, bits: int) -> torch.Tensor:
    if 32 % bits:
        return torch.tensor([fields(row, bits) for row in rows], dtype=torch.int32)
    words = np.asarray(rows, np.int64).reshape(len(rows), -1, 32 // bits) << np.arange(0, 32, bits)
    return torch.from_numpy(np.ascontiguousarray(words.sum(-1)).astype(np.uint32).view(np.int32))


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


def gptq(
    weight: F32, bits: int, group: int, version: int = 1, symmetric: bool = True, ordered: bool = False
) -> tuple[Parts, F32]:
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
        return packed(rows.reshape(len(rows), -1, 8)[..., order].reshape(rows.shape), 4)

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


def int_ordered(weight: F32) -> tuple[Parts, F32]:
    """int8 with groups that activations ordered, and zeros."""
    order = np.random.default_rng(5).permutation(weight.shape[1])
    codes, scales, zeros, groups, wanted = rounded(weight, 8, 64, symmetric=False, order=order)
    return {
        "weight": torch.from_numpy((codes - 128).astype(np.int8)),
        "weight_scale": torch.from_numpy(scales),
        "weight_zero_point": torch.from_numpy((zeros - 128).astype(np.int8)),
        "weight_g_idx": torch.from_numpy(groups.astype(np.int32)),
    }, wanted


def unordered(parts: tuple[Parts, F32]) -> tuple[Parts, F32]:
    """With the groups that compressed-tensors writes where nothing reordered them."""
    return parts[0] | {"weight_g_idx": torch.full((parts[1].shape[1],), -1, dtype=torch.int32)}, parts[1]


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
    "packed-4-unordered": (compressed("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=False),
                           lambda w: unordered(pack_quantized(w, 4, symmetric=False, ordered=False))),
    "int8-order": (compressed("int-quantized", num_bits=8, group_size=64, strategy="group", symmetric=False), int_ordered),
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
        assert np.array_equal(found.weights.read(name), values)
        assert np.array_equal(found.weights.read(name, 13, 45), found.weights.read(name)[13:45])
        assert np.array_equal(found.weights.read(name, 200), found.weights.read(name)[200:])
        assert found.weights.read(name, 5, 5).shape == (0, *values.shape[1:])
    found.weights.close()


@pytest.mark.parametrize("model", ["phi3", "qwen3_moe", "gpt2"])
def test_fused_stacked_and_transposed_matrices(model: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(pico(model), tmp_path / model))
    config, quantise = CASES["gptq-4-v2"]
    tensors, wanted = load_file(place / "model.safetensors"), dict[str, F32]()
    matrices = [name for name in tensors if re.search(r"(_proj|c_fc|c_proj|c_attn)\.weight$", name)]
    for name in matrices:
        values = tensors.pop(name).numpy()
        parts, made = quantise(values.T if model == "gpt2" else values)
        wanted[name] = made.T if model == "gpt2" else made
        tensors |= {f"{name.removesuffix('.weight')}.{role}": part for role, part in parts.items()}
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    whole = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**whole, "quantization_config": config}))
    weights = source.describe(str(place)).weights
    assert len(matrices) >= 8
    for name, values in wanted.items():
        assert np.array_equal(weights.read(name), values)
        assert np.array_equal(weights.read(name, 3, 41), values[3:41])


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


def changed(place: Path, tensors: Parts) -> None:
    """Put other tensors into a checkpoint."""
    path = place / "model.safetensors"
    whole = {**load_file(path), **tensors}
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, path, {"format": "pt"})


MODULE = "model.layers.0.mlp.up_proj"


def test_modules_have_bits_and_groups_of_their_own(quantised: Any, pico: Callable[[str], Path]) -> None:
    own = {
        "-:lm_head": {},
        r"+:model\.layers\.0\.mlp\.up_proj$": {"bits": 8, "group_size": 32},
        r".*\.up_proj$": {"bits": 2},
        r".*\.v_proj$": {"bits": 3},
    }
    place, wanted = quantised("gptq-4", dynamic=own)
    original = load_file(pico("llama") / "model.safetensors")
    for name in (name for name in original if name.endswith(("up_proj.weight", "v_proj.weight"))):
        settings = (3, 128) if "v_proj" in name else (8, 32) if name.startswith(MODULE) else (2, 128)
        parts, wanted[name] = gptq(original[name].numpy(), *settings)
        changed(place, {f"{name.removesuffix('.weight')}.{role}": part for role, part in parts.items()})
    weights = source.describe(str(place)).weights
    for name, values in wanted.items():
        assert np.array_equal(weights.read(name), values)
    kinds = [weights.infos[f"{name}.weight"].dtype for name in (MODULE, MODULE.replace("0", "1"), MODULE.replace("up", "gate"))]
    assert kinds == ["GPTQ-8", "GPTQ-2", "GPTQ-4"]


def test_groups_that_do_not_divide_the_width(quantised: Any) -> None:
    """256 columns in groups of 96: 96, 96 and 64, in order, whether g_idx says so or not."""
    place, _ = quantised("gptq-4", dynamic={MODULE: {"group_size": 96}})
    generator = np.random.default_rng(2)
    scales, codes = generator.uniform(0.01, 0.02, (3, 512)).astype(np.float16), generator.integers(0, 16, (512, 256))
    groups = np.repeat([0, 1, 2], [96, 96, 64])
    wanted = (codes - 8).astype(np.float32) * scales.T[:, groups].astype(np.float32)
    parts = {
        "qweight": packed(codes, 4).T,
        "qzeros": torch.full((3, 64), 0x77777777, dtype=torch.int32),
        "scales": torch.from_numpy(scales),
    }
    for further in ({}, {"g_idx": torch.from_numpy(groups.astype(np.int32))}):
        named = {f"{MODULE}.{role}": part for role, part in {**parts, **further}.items()}
        changed(place, named)
        weights = source.describe(str(place)).weights
        assert np.array_equal(weights.read(f"{MODULE}.weight"), wanted)
        assert np.array_equal(weights.read(f"{MODULE}.weight", 77, 91), wanted[77:91])


@pytest.mark.parametrize("case", ["gptq-3", "awq", "fp8-block"])
def test_threads_read_at_once(case: str, quantised: Any) -> None:
    place, wanted = quantised(case)
    weights = source.describe(str(place)).weights
    spans = [(name, start) for name in wanted if wanted[name].ndim == 2 for start in range(0, len(wanted[name]), 37)]
    with ThreadPoolExecutor(8) as pool:
        for (name, start), rows in zip(spans, pool.map(lambda at: weights.read(at[0], at[1], at[1] + 37), spans), strict=True):
            assert np.array_equal(rows, wanted[name][start : start + 37])


@pytest.mark.parametrize(
    ("case", "dtype", "code", "shown"),
    [
        ("float8-channel", "F8_E4M3", 0x7F, "nan"),
        ("float8-channel", "F8_E4M3", 0xFF, "nan"),
        ("fp8-tensor", "F8_E5M2", 0xFC, "-inf"),
    ],
)
def test_a_code_that_is_no_number_is_named(case: str, dtype: str, code: int, shown: str, quantised: Any) -> None:
    place, _ = quantised(case)

    whole = load_file(place / "model.safetensors")[f"{MODULE}.weight"]
    whole.view(torch.uint8)[70, 33] = code
    changed(place, {f"{MODULE}.weight": whole})
    weights = source.describe(str(place)).weights
    weights.read(f"{MODULE}.weight", 0, 70)
    with pytest.raises(
        WeightError, match=rf"up_proj.weight: row 70, column 33 holds {dtype}'s code 0x{code:02x}, which is {shown}"
    ):
        weights.read(f"{MODULE}.weight", 64, 128)


@pytest.mark.parametrize(
    ("case", "part", "change", "message"),
    [
        ("float8-channel", "weight_scale", lambda t: t[:-1], r"do not fit each other .*weight_scale \[511, 1\]"),
        ("fp8-block", "weight_scale_inv", lambda t: t[:, :-1], r"weight_scale_inv \[11, 2\]; 8 bits, blocks of \[48, 100\]"),
        (
            "float8-channel",
            "weight_scale",
            lambda t: t.double(),
            r"up_proj.weight_scale is F64; known for scales: BF16, F16, F32",
        ),
        ("gptq-4", "qweight", lambda t: t.long(), r"up_proj.qweight is I64; known for codes: I32"),
        ("gptq-4", "qzeros", lambda t: t[:, :-1], r"do not fit each other .*qzeros \[2, 63\]"),
        ("awq", "qzeros", lambda t: t[:-1], r"do not fit each other .*qzeros \[3, 64\]"),
        ("packed-4-asymmetric", "weight_zero_point", lambda t: t[:-1], r"do not fit each other .*weight_zero_point \[63, 8\]"),
    ],
)
def test_parts_of_a_wrong_type_or_shape_are_named_from_headers(
    case: str, part: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, quantised: Any
) -> None:
    place, _ = quantised(case)
    stored = load_file(place / "model.safetensors")[f"{MODULE}.{part}"]
    changed(place, {f"{MODULE}.{part}": change(stored)})
    with pytest.raises((SourceError, UnsupportedError), match=message):
        source.describe(str(place))


def test_what_a_runtime_needs_beside_the_weights_is_left_out(quantised: Any) -> None:
    place, wanted = quantised("fp8-tensor", modules_to_not_convert=["lm_head"], activation_scheme="static")
    attention = "model.layers.0.self_attn"
    names = ("k_scale", "v_scale", "q_scale", "k_proj.output_scale", "q_proj.activation_scale", "q_proj.input_scale_ub")
    changed(place, {f"{attention}.{name}": torch.tensor(1.0) for name in names})
    assert source.describe(str(place)).weights.infos.keys() == wanted.keys()


def test_a_pattern_that_is_none_is_named(quantised: Any) -> None:
    place, _ = quantised("gptq-4", dynamic={"+:*.up_proj": {"bits": 8}})
    with pytest.raises(SourceError, match=r"'\*\.up_proj' is no pattern of module names"):
        source.describe(str(place))
