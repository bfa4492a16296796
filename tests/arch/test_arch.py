"""Architectures: the tensors they expect are those of transformers' model, and every misfit is listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import PICO

from quantkit import arch, checkpoint, source
from quantkit.errors import SourceError, UnsupportedError, WeightError
from quantkit.source import folder
from quantkit.values import TensorInfo


@pytest.mark.parametrize("name", PICO)
def test_transformers_declares_what_is_expected(name: str, pico: Callable[[str], Path]) -> None:
    config = source.describe(str(pico(name))).config
    checkpoint.verify(arch.find(config), config, folder.reconstruct(config))


def test_biases_are_expected_where_config_says_so(pico: Callable[[str], Path]) -> None:
    config = {**source.describe(str(pico("llama"))).config, "attention_bias": True, "mlp_bias": True}
    checkpoint.verify(arch.find(config), config, folder.reconstruct(config))


def test_every_pico_architecture_has_a_checkpoint() -> None:
    assert {settings["model_type"] for settings in PICO.values()} == set(arch.known())


def test_misfits_are_listed_with_their_origin(pico: Callable[[str], Path]) -> None:
    found = source.describe(str(pico("llama3")))
    architecture = arch.find(found.config)
    infos = dict(found.weights.infos)
    norm, head = infos.pop("model.norm.weight"), infos.pop("lm_head.weight")
    infos["model.layers.0.extra.weight"] = replace(norm, name="model.layers.0.extra.weight")
    with pytest.raises(SourceError) as caught:
        checkpoint.verify(architecture, found.config, infos)
    assert "missing: model.norm.weight [256]" in str(caught.value)
    assert "missing: lm_head.weight [512, 256] (is tie_word_embeddings meant to be true?)" in str(caught.value)
    assert "unexpected: model.layers.0.extra.weight" in str(caught.value)
    infos = {**found.weights.infos, "lm_head.weight": replace(head, shape=(500, 256))}
    with pytest.raises(
        WeightError, match=r"lm_head.weight is \[500, 256\], .* \[512, 256\] \(vocab_size = 512, hidden_size = 256\)"
    ):
        checkpoint.verify(architecture, found.config, infos)


def test_redundant_tensors_are_let_be(pico: Callable[[str], Path]) -> None:
    found = source.describe(str(pico("llama")))
    extra = {name: TensorInfo(name, (1,), "F32", 4) for name in ("model.layers.0.self_attn.rotary_emb.inv_freq",)}
    extra["lm_head.weight"] = TensorInfo("lm_head.weight", (512, 256), "F32", 0)
    checkpoint.verify(arch.find(found.config), found.config, {**found.weights.infos, **extra})


def test_what_is_not_supported_is_named(pico: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match=r"'gemma9' is not supported; supported: bert, falcon, .*llama, mistral"):
        arch.find({"model_type": "gemma9"})
    found = source.describe(str(pico("llama")))
    config = {**found.config, "hidden_act": "gelu"}
    with pytest.raises(UnsupportedError, match="hidden_act = 'gelu' is not supported for llama; supported: 'silu'"):
        checkpoint.verify(arch.find(config), config, found.weights.infos)
    with pytest.raises(SourceError, match="vocab_size = None"):
        arch.expected(arch.find(config), {**config, "vocab_size": None})
