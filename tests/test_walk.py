"""The walk against transformers' own forward, on one tiny random model per kind of decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import CONFIGS, tiny

from quantkit import heads, skeleton, source
from quantkit import walk as walking
from quantkit.errors import UnsupportedError, WeightError
from quantkit.values import F32, Inputs


def sequences(count: int = 5, length: int = 48) -> Any:
    return np.random.default_rng(3).integers(3, 300, (count, length)).astype(np.int32)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_walk_gives_the_models_own_logits(kind: str) -> None:
    config, model, weights = tiny(kind)
    tokens = sequences()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    threads = torch.get_num_threads()
    hidden = walking.walk(config, weights, tokens, threads=1, micro_batch=2)
    project = heads.project(config, weights, threads=1)
    found = np.stack([project(chunk) for chunk in hidden])
    assert torch.get_num_threads() == threads
    assert hidden.dtype == found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def test_one_layer_is_present_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, weights = tiny("llama")
    built: list[Any] = []
    build = skeleton.build
    monkeypatch.setattr(skeleton, "build", lambda *given: built.append(build(*given)) or built[-1])
    most: list[set[str]] = []

    def observe(_name: str, _x: F32) -> None:
        present = {n for n, p in built[0].named_parameters() if p.device.type == "cpu" and n != "model.norm.weight"}
        most.append({n.split(".")[2] for n in present if ".layers." in n} | {n for n in present if "embed" in n})

    walking.walk(config, weights, sequences(), threads=1, micro_batch=2, observe=observe)
    assert all(len(present) == 1 for present in most)
    assert {next(iter(present)) for present in most} == {"0", "1", "2"}
    assert all(p.device.type == "meta" for n, p in built[0].named_parameters() if n != "model.norm.weight")
    assert sorted(weights.reads) == sorted(set(weights.reads)), "every tensor is read once"


def test_the_observer_sees_the_input_of_every_matrix_of_a_layer() -> None:
    config, model, weights = tiny("phi3")
    expected: dict[str, F32] = {}

    def keep(name: str, inputs: Any) -> None:
        expected[name] = np.square(inputs[0].detach().reshape(-1, inputs[0].shape[-1]).numpy()).sum(0)

    for name, module in model.named_modules():
        if ".layers." in name and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=f"{name}.weight": keep(name, inputs))
    tokens = sequences()
    with torch.no_grad():
        model(input_ids=torch.from_numpy(tokens.astype(np.int64)))
    energy: dict[str, Any] = {}

    def observe(name: str, x: F32) -> None:
        energy[name] = energy.get(name, 0.0) + np.square(x).sum(0)

    walking.walk(config, weights, tokens, threads=1, micro_batch=3, observe=observe)
    assert energy.keys() == expected.keys()
    for name, seen in expected.items():
        np.testing.assert_allclose(energy[name], seen, rtol=1e-4)


def test_the_number_of_threads_changes_nothing() -> None:
    config, _, weights = tiny("gemma3")
    found: list[Any] = []
    for threads in (1, 2, 3):
        seen: list[tuple[str, bytes]] = []
        hidden = walking.walk(
            config, weights, sequences(), threads=threads, observe=lambda name, x, s=seen: s.append((name, x.tobytes()))
        )
        found.append((hidden.tobytes(), seen))
    assert found[0] == found[1] == found[2]


def test_a_large_head_is_read_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, weights = tiny("llama")
    hidden = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    whole = heads.project(config, weights, threads=1)(hidden)
    monkeypatch.setattr(skeleton, "SLAB_BYTES", 4 * 64 * 7)
    monkeypatch.setattr(heads, "_RESIDENT_BYTES", 0)
    np.testing.assert_allclose(heads.project(config, weights, threads=1)(hidden), whole, atol=1e-5)


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    config, _, weights = tiny("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    weights.state[name] = weights.state[name][:-1]
    with pytest.raises(WeightError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is \(95, 64\)"):
        walking.walk(config, weights, sequences(), threads=1)
    del weights.state[name]
    with pytest.raises(WeightError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        walking.walk(config, weights, sequences(), threads=1)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    config, _, weights = tiny("llama")
    with pytest.raises(WeightError, match="token ids 5 to 300 do not fit"):
        walking.walk(config, weights, np.array([[5, 300]], np.int32), threads=1)


def test_an_unknown_model_type_is_refused() -> None:
    _, _, weights = tiny("llama")
    with pytest.raises(UnsupportedError, match="model_type 'nonesuch'"):
        walking.walk({"model_type": "nonesuch"}, weights, sequences(), threads=1)


def saved(folder: Path, auto_class: str) -> tuple[dict[str, Any], Any, Any]:
    found = source.describe(str(folder))
    model = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    return dict(found.config), model, found.weights


def test_an_encoder_is_walked(pico: Callable[[str], Path]) -> None:
    config, model, weights = saved(pico("bert"), "AutoModel")
    tokens, seen = sequences(), dict[str, int]()

    def observe(name: str, x: F32) -> None:
        seen[name] = seen.get(name, 0) + len(x)

    found = walking.walk(config, weights, tokens, threads=2, micro_batch=2, observe=observe)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens.astype(np.int64))).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
    assert len(seen) == 2 * 6
    assert set(seen.values()) == {tokens.size}


@pytest.mark.parametrize("name", ["t5", "t5-1.1"])
def test_encoder_and_decoder_are_walked(name: str, pico: Callable[[str], Path]) -> None:
    config, model, weights = saved(pico(name), "AutoModelForSeq2SeqLM")
    asked, answers, seen = sequences(length=40), sequences(length=30), dict[str, int]()

    def observe(name: str, x: F32) -> None:
        seen[name] = seen.get(name, 0) + len(x)

    given = {"decoder_sequences": answers, "threads": 2, "micro_batch": 2}
    found = walking.walk(config, weights, asked, observe=observe, **given)
    project = heads.project(config, weights, threads=1)
    ids = [torch.from_numpy(each.astype(np.int64)) for each in (asked, answers)]
    with torch.no_grad():
        expected = model(input_ids=ids[0], decoder_input_ids=ids[1]).logits.numpy()
    np.testing.assert_allclose(np.stack([project(chunk) for chunk in found]), expected, atol=5e-5, rtol=1e-3)
    crossing = {name: rows for name, rows in seen.items() if "EncDecAttention.k" in name or name.startswith("encoder")}
    assert set(crossing.values()) == {asked.size}
    assert {rows for name, rows in seen.items() if name not in crossing and "EncDecAttention.v" not in name} == {answers.size}


def coarse(weights: Mapping[str, F32], _: Inputs) -> dict[str, F32]:
    return {name: np.round(8 * weight) / 8 for name, weight in weights.items()}


KINDS = {
    "llama": "", "mistral": "", "qwen3": "", "phi3": "", "opt": "", "gemma3": "", "granite": "",
    "qwen2": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM", "falcon-new": "AutoModelForCausalLM",
    "mixtral": "AutoModelForCausalLM", "qwen3_moe": "AutoModelForCausalLM", "bert": "AutoModel", "t5-1.1": "AutoModel",
}  # fmt: skip
"""Tiny models in memory, and pico checkpoints by the class that loads them."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_goes_through_the_weights_that_replace_the_model_s(kind: str, pico: Callable[[str], Path]) -> None:
    config, model, weights = saved(pico(kind), KINDS[kind]) if KINDS[kind] else tiny(kind)
    tokens = sequences(count=7, length=32)
    given: dict[str, Any] = {"decoder_sequences": tokens[:, ::-1].copy()} if config.get("is_encoder_decoder") else {}
    lanes = [walking.Lane(slice(2, 4), lambda *_: {}), walking.Lane(slice(4, 7), coarse)]
    found = walking.walk(config, weights, tokens, threads=2, micro_batch=2, lanes=lanes, **given)
    plain = walking.walk(config, weights, tokens, threads=1, micro_batch=2, **given)
    np.testing.assert_allclose(found[:4], plain[:4], atol=2e-5, rtol=1e-4)
    base = model.base_model
    ids = [torch.from_numpy(each.astype(np.int64)) for each in (tokens, *given.values())]
    with torch.no_grad():
        for layer in (layer for stack in skeleton.stacks(base) for layer in stack):
            for name, parameter in layer.named_parameters():
                if parameter.ndim > 1 and "relative_attention_bias" not in name:
                    parameter.copy_(torch.round(8 * parameter) / 8)
        inputs = dict(zip(("input_ids", "decoder_input_ids"), ids, strict=False))
        expected = base(**inputs).last_hidden_state.numpy()
    assert np.abs(expected[:4] - found[:4]).max() > 1e-2
    np.testing.assert_allclose(found[4:], expected[4:], atol=2e-4, rtol=1e-3)


def test_matrices_are_replaced_together_where_they_meet_the_same_input() -> None:
    config, _, weights = tiny("llama")
    met: list[tuple[list[str], list[tuple[int, ...]]]] = []

    def replace(matrices: Mapping[str, F32], inputs: Inputs) -> dict[str, F32]:
        met.append(([name.split(".", 3)[3] for name in matrices], [x.shape for x in inputs]))
        return {}

    walking.walk(config, weights, sequences(), threads=2, micro_batch=2, lanes=[walking.Lane(slice(0, 5), replace)])
    attention = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
    groups = [attention, ["self_attn.o_proj.weight"], ["mlp.gate_proj.weight", "mlp.up_proj.weight"], ["mlp.down_proj.weight"]]
    assert [names for names, _ in met] == 3 * groups
    assert {tuple(shapes) for names, shapes in met if names == attention} == {((96, 64), (96, 64), (48, 64))}


def test_experts_get_the_tokens_that_reach_them(pico: Callable[[str], Path]) -> None:
    config, _, weights = saved(pico("mixtral"), "AutoModelForCausalLM")
    tokens, seen = sequences(), dict[str, int]()

    def replace(matrices: Mapping[str, F32], inputs: Inputs) -> dict[str, F32]:
        for name in matrices:
            assert name not in seen
            seen[name] = sum(len(x) for x in inputs)
        return {}

    walking.walk(config, weights, tokens, threads=2, lanes=[walking.Lane(slice(0, len(tokens)), replace)])
    for layer in range(2):
        for stack in ("gate_up_proj", "down_proj"):
            reached = [count for name, count in seen.items() if f"layers.{layer}." in name and f"{stack}[" in name]
            assert sum(reached) == config["num_experts_per_tok"] * tokens.size


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_walk_that_was_stopped_goes_on_with_the_next_layer(kind: str, narrow: bool, tmp_path: Path) -> None:
    config, _, weights = tiny(kind)
    tokens, made = sequences(), list[str]()

    class Stopped(Exception):
        pass

    def until(stop: str | None) -> Callable[..., dict[str, F32]]:
        def replace(matrices: Mapping[str, F32], inputs: Inputs) -> dict[str, F32]:
            made.extend(matrices)
            if stop is not None and any(stop in name for name in matrices):
                raise Stopped
            return {name: weight + 1e-3 * np.tanh(inputs[0].mean()) for name, weight in matrices.items()}

        return replace

    def walk(stop: str | None, keep: Path | None, threads: int = 2) -> F32:
        lanes = [walking.Lane(slice(1, 5), until(stop))]
        return walking.walk(config, weights, tokens, threads=threads, lanes=lanes, narrow=narrow, keep=keep)

    whole = walk(None, None, threads=1)
    made.clear()
    with pytest.raises(Stopped):
        walk("layers.2.self_attn.o_proj", tmp_path / "states")
    before = set(made)
    made.clear()
    assert walk(None, tmp_path / "states").tobytes() == whole.tobytes()
    assert not any("layers.0." in name or "layers.1." in name for name in made)
    assert any("layers.1." in name for name in before)
