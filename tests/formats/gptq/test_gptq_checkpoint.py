"""GPTQ targets: what is planned, what a run makes of it, and that it is the same bytes whatever happens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import quantkit
from quantkit import pipeline, recipe_file, source
from quantkit.errors import InputError, RecipeError, UnsupportedError
from quantkit.formats.gptq import layout, shards
from quantkit.kernels import hessian
from quantkit.manifest import Manifest
from quantkit.targets import GptqTarget

MODELS = ["llama", "mistral", "qwen3", "gemma3", "phi3", "gpt2", "falcon-new", "mixtral", "qwen3_moe"]


def recipe(
    place: Path, model: Path, *targets: str, checks: str = "  perplexity: {chunks: 2}\n  divergence: {max_mean: 0.2}"
) -> Path:
    lines = "".join(f"  - {{format: gptq, {target}}}\n" for target in targets)
    path = place / "pico.yaml"
    path.write_text(
        f"source: {model}\ntargets:\n{lines}calibration: {{tokens: 1024}}\nchecks:\n{checks}\n  memory: {{contexts: []}}\n"
    )
    return path


def convert(path: Path, work: Path, threads: int = 1) -> Manifest:
    return quantkit.convert(path, work_dir=work, threads=threads)


def planned(model: Path, **settings: Any) -> Any:
    target = GptqTarget(format="gptq", **settings)
    return layout.plan(target, "0" * 64, source.describe(str(model)), "org/pico")


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_made_of_every_kind_of_decoder(name: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = convert(recipe(tmp_path, pico(name), "bits: 4, group: 64", "bits: 8, group: -1, sym: false"), tmp_path)
    for target in manifest.targets:
        checks = {check.check: check for check in target.checks}
        assert list(checks) == ["integrity", "perplexity", "divergence", "cloze", "calibration", "latency"]
        assert (checks["integrity"].verdict, checks["latency"].verdict) == ("pass", "report")
        assert checks["divergence"].engine.startswith("quantkit torch_blocks")
    coarse, fine = (target.checks[2].values["mean_kld"] for target in manifest.targets)
    assert 0 < fine < coarse < 0.2
    assert fine < 1e-3


def test_layouts_give_the_same_weights(pico: Callable[[str], Path], tmp_path: Path) -> None:
    targets = ("bits: 4, group: 64, sym: false", "bits: 4, group: 64, sym: false, layout: compressed-tensors")
    manifest = convert(recipe(tmp_path, pico("llama"), *targets), tmp_path)
    one, other = (source.describe(str((tmp_path / "pico" / each.file).parent)).weights for each in manifest.targets)
    for name in one.infos:
        assert np.array_equal(one.read(name), other.read(name))
    said = [json.loads((tmp_path / "pico" / each.file).with_name("config.json").read_text()) for each in manifest.targets]
    assert said[0]["quantization_config"]["checkpoint_format"] == "gptq_v2"
    assert said[1]["quantization_config"]["quant_method"] == "compressed-tensors"


def test_bytes_depend_neither_on_threads_nor_on_an_interruption(
    pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, pico("llama"), "bits: 4, group: 32, quality: high", "bits: 3, group: 64")
    whole = [[file.sha256 for file in target.files] for target in convert(path, tmp_path / "a", threads=1).targets]
    calls, factor = [0], hessian.factor

    def stop(*given: Any, **settings: Any) -> hessian.Factor:
        calls[0] += 1
        if calls[0] == 11:  # in the second layer
            raise KeyboardInterrupt
        return factor(*given, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(hessian, "factor", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(path, tmp_path / "b", threads=2)
    assert not list((tmp_path / "b" / "pico").rglob("model.safetensors"))
    count = [0]

    def counted(*given: Any, **settings: Any) -> hessian.Factor:
        count[0] += 1
        return factor(*given, **settings)

    monkeypatch.setattr(hessian, "factor", counted)
    again = [[file.sha256 for file in target.files] for target in convert(path, tmp_path / "b", threads=2).targets]
    assert again == whole
    assert count[0] == 2 * 4, "one of two layers was left"
    monkeypatch.setattr(hessian, "factor", stop)
    calls[0] = 10
    assert [[file.sha256 for file in target.files] for target in convert(path, tmp_path / "b").targets] == whole


def test_rules_and_what_stays(pico: Callable[[str], Path]) -> None:
    rules = [
        {"match": "*.down_proj", "bits": 8, "group": 32},
        {"match": "model.layers.0.*", "skip": True},
        {"match": "*.k_proj", "group": 64},
    ]
    plan = planned(pico("llama"), rules=rules)
    kinds = {row.name.removesuffix(".weight"): row.type for row in plan.rows}
    assert kinds["model.layers.0.mlp.down_proj"] == "W8G32"
    assert kinds["model.layers.0.self_attn.q_proj"] == kinds["model.embed_tokens"] == "F32"
    assert (kinds["model.layers.1.self_attn.k_proj"], kinds["model.layers.1.self_attn.q_proj"]) == ("W4G64", "W4G128")
    said = layout.quantization_config(plan, plan.gptq, source.describe(str(pico("llama"))), {})
    assert said["dynamic"]["-:^model\\.layers\\.0\\.self_attn\\.q_proj$"] == {}
    assert said["dynamic"]["+:^model\\.layers\\.1\\.self_attn\\.k_proj$"] == {"bits": 4, "group_size": 64}
    assert said["dynamic"]["+:^model\\.layers\\.0\\.mlp\\.down_proj$"] == {"bits": 8, "group_size": 32}
    assert (said["sym"], said["desc_act"], said["quant_method"], said["checkpoint_format"]) == (True, False, "gptq", "gptq")


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
def test_bits_by_rule_are_read_back(layout: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    rules = "rules: [{match: '*.down_proj', bits: 8, group: 32}, {match: '*.0.self_attn.k_proj', group: 128}]"
    target = convert(recipe(tmp_path, pico("llama"), f"bits: 4, group: 64, layout: {layout}, {rules}"), tmp_path).targets[0]
    assert target.checks[0].verdict == "pass"
    infos = source.describe(str((tmp_path / "pico" / target.file).parent)).weights.infos
    label = "GPTQ" if layout == "gptq" else "INT"
    kinds = [infos[f"model.layers.0.{name}.weight"].dtype for name in ("mlp.down_proj", "mlp.up_proj")]
    assert kinds == [f"{label}-8", f"{label}-4"]


def test_the_head_is_quantised_where_it_is_asked_for(pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = convert(recipe(tmp_path, pico("mistral"), "bits: 4, group: 64, lm_head: true"), tmp_path)
    kinds = {tensor.name: tensor.type for tensor in manifest.targets[0].tensors}
    assert kinds.get("lm_head.weight") == "W4G64"


def test_refusals(pico: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="GPTQ checkpoints are of decoders, this is an encoder"):
        planned(pico("bert"))
    with pytest.raises(InputError, match=r"rules that match no matrix: '\*\.up_prj'; names are like model"):
        planned(pico("llama"), rules=[{"match": "*.up_prj", "skip": True}])
    place = Path(shutil.copytree(pico("llama"), tmp_path / "odd"))
    odd_width(place)
    with pytest.raises(InputError, match=r"group 128 does not divide the 192 columns of .*\.down_proj.*these do: 32, 64, -1"):
        planned(place)
    for text, message in {
        "bits: 5": "Input should be 2, 3, 4 or 8|is not one of 2, 3, 4 or 8",
        "sym: false, version: 1": "version: 1 stores each zero less one",
        "bits: 3, layout: compressed-tensors": "no codes of 3 bits",
        "bitz: 4": r"unknown key; did you mean bits\?",
    }.items():
        with pytest.raises(RecipeError, match=message):
            recipe_file.read(recipe(tmp_path, pico("llama"), text))


def odd_width(place: Path) -> None:
    """Cut the MLP of a pico llama to 192."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(place / "model.safetensors")
    for name in tensors:
        if "gate_proj" in name or "up_proj" in name:
            tensors[name] = tensors[name][:192].contiguous()
        if "down_proj" in name:
            tensors[name] = tensors[name][:, :192].contiguous()
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"intermediate_size": 192}))
    assert torch.is_tensor(tensors["model.norm.weight"])


def test_a_latency_gate_that_cannot_be_measured_is_unresolved(pico: Callable[[str], Path], tmp_path: Path) -> None:
    checks = "  perplexity: {chunks: 2}\n  latency: {min_decode_ratio: 1.5}"
    with pytest.raises(quantkit.errors.UnresolvedError, match=r"latency: not measured.*set latency: report on this target"):
        convert(recipe(tmp_path, pico("llama"), "bits: 8, group: 64", checks=checks), tmp_path)


def test_few_calibration_tokens_are_told(pico: Callable[[str], Path], tmp_path: Path) -> None:
    path = recipe(tmp_path, pico("gpt2"), "bits: 4")  # whose widest matrix has 1,024 columns
    path.write_text(path.read_text().replace("tokens: 1024", "tokens: 512"))
    document = recipe_file.read(path)
    plan = pipeline.make_plan(document, source.describe(document.recipe.source))
    assert any("512 tokens are fewer than the 1024 columns of the widest matrix" in note for note in plan.notes)


def test_shards_are_read_by_safetensors(tmp_path: Path) -> None:
    rows = {name: [shards.Tensor(name, "F16", (3, 5), 30)] for name in "abcd"}
    arranged = shards.arrange(rows, largest=70)
    assert [shard.name for shard in arranged] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    listing = json.loads(shards.index(arranged) or "")
    assert listing["weight_map"] == {"a": arranged[0].name, "b": arranged[0].name, "c": arranged[1].name, "d": arranged[1].name}
    values = np.arange(15, dtype=np.float16).reshape(3, 5)
    path = tmp_path / arranged[0].name
    path.write_bytes(shards.header(arranged[0].tensors) + 2 * values.tobytes())
    assert path.stat().st_size == arranged[0].nbytes
    with safe_open(path, "numpy") as file:
        assert np.array_equal(file.get_tensor("b"), values)
    assert [shard.name for shard in shards.arrange(rows)] == ["model.safetensors"]
    assert shards.index(shards.arrange(rows)) is None


def test_the_plan_names_its_sizes_to_the_byte(pico: Callable[[str], Path], tmp_path: Path) -> None:
    path = recipe(tmp_path, pico("phi3"), "bits: 3, group: 32")
    document = recipe_file.read(path)
    plan = pipeline.make_plan(document, source.describe(document.recipe.source)).targets[0]
    manifest = convert(path, tmp_path)
    assert [file.name for file in plan.files] == [manifest.targets[0].file]
    assert (tmp_path / "pico" / plan.file).stat().st_size == plan.files[0].nbytes


@pytest.mark.parametrize(("bits", "kind"), [(4, "Q4_0"), (8, "Q8_0"), (4, "Q8_0")])
def test_a_gguf_of_a_checkpoint_holds_the_same_codes(bits: int, kind: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = convert(recipe(tmp_path, pico("llama"), f"bits: {bits}, group: 64"), tmp_path)
    folder = (tmp_path / "pico" / manifest.targets[0].file).parent
    found = source.describe(str(folder))
    made = quantkit.convert(folder, type=kind, work_dir=tmp_path / "gguf", checks=False)
    back = source.describe(str(next((tmp_path / "gguf").rglob(made.targets[0].file))))
    for name in layout.matrices(found):
        assert np.array_equal(back.weights.read(name), found.weights.read(name))
