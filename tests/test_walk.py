"""The walk against transformers' own forward, on one tiny random model per kind of decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quantkit import walk as walking
from quantkit.errors import UnsupportedError, WeightError
from quantkit.values import F32, TensorInfo

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    "llama-rope-scaling": {
        **SMALL,
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {**SMALL, "model_type": "mistral", "sliding_window": 16},
    "qwen3": {**SMALL, "model_type": "qwen3", "head_dim": 16},
    "gemma3": {
        **SMALL,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "head_dim": 16,
        "sliding_window": 16,
        "final_logit_softcapping": 3.0,
    },
    "phi3": {**SMALL, "model_type": "phi3"},
    "granite": {**SMALL, "model_type": "granite", "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "opt": {
        "model_type": "opt",
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "vocab_size": 300,
        "max_position_embeddings": 128,
    },
}


class StateDict:
    """A checkpoint held in memory, which counts how much of it is out with a reader."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self.state = {name: tensor.numpy() for name, tensor in state.items()}
        self.reads: list[str] = []

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {name: TensorInfo(name, array.shape, "F32", array.nbytes) for name, array in self.state.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        self.reads.append(name)
        return np.ascontiguousarray(self.state[name][start:stop])

    def close(self) -> None:
        self.state.clear()


def tiny(kind: str) -> tuple[dict[str, Any], Any, StateDict]:
    torch.manual_seed(7)
    config = CONFIGS[kind]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **settings), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start as ones and zeros, which would hide a missing one
                parameter += 0.1 * torch.randn(parameter.shape)
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return config, model, StateDict(state)


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
    project = walking.head(config, weights, threads=1)
    found = np.stack([project(chunk) for chunk in hidden])
    assert torch.get_num_threads() == threads
    assert hidden.dtype == found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def test_one_layer_is_present_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, weights = tiny("llama")
    built: list[Any] = []
    skeleton = walking._skeleton
    monkeypatch.setattr(walking, "_skeleton", lambda c: built.append(skeleton(c)) or built[-1])
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


def test_a_large_head_is_read_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, weights = tiny("llama")
    hidden = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    whole = walking.head(config, weights, threads=1)(hidden)
    monkeypatch.setattr(walking, "_SLAB_BYTES", 4 * 64 * 7)
    monkeypatch.setattr(walking, "_RESIDENT_BYTES", 0)
    np.testing.assert_allclose(walking.head(config, weights, threads=1)(hidden), whole, atol=1e-5)


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
