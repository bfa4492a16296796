"""Hyper-parameters, names and row order, held against llama.cpp's own forward and gguf-py's reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DECODERS, PICO, write_gguf

from quantkit import arch, source
from quantkit.codecs import gguf_config, gguf_kv, gguf_tensors
from quantkit.errors import SourceError, UnsupportedError

LLAMA = arch.known()["llama"]
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA31 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def nmse(found: Any, wanted: Any) -> float:
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("name", DECODERS)
def test_llama_cpp_computes_the_models_own_logits(name: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    llama_cpp = pytest.importorskip("llama_cpp")
    tokens = np.random.default_rng(0).integers(0, 480, 48).tolist()
    model = AutoModelForCausalLM.from_pretrained(pico(name), dtype=torch.float32)
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    path = write_gguf(source.describe(str(pico(name))), tmp_path / "pico.gguf")
    engine = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
    engine.eval(tokens)
    assert nmse(engine.scores[: len(tokens)], wanted) < 1e-6


def test_smollm2_pairs_come_back(smol: Path) -> None:
    kv = gguf_kv.read(smol).values()
    config = gguf_config.decode(LLAMA, kv)
    for pair in gguf_config.encode(arch.find(config), config):
        assert np.float32(pair.value) == np.float32(kv[pair.key]), pair.key
    assert config["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("name", PICO)
def test_transformers_reads_the_decoded_config_as_the_first(name: str, pico: Callable[[str], Path]) -> None:
    from transformers import AutoConfig

    config = source.describe(str(pico(name))).config
    architecture = arch.find(config)
    kv = gguf_kv.values(gguf_config.encode(architecture, config))
    kv["tokenizer.ggml.tokens"] = [""] * config["vocab_size"]
    extra = gguf_config.extra_tensors(architecture, config)
    back = gguf_config.decode(architecture, kv, extra) | {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
    first, second = (AutoConfig.for_model(**{**value, "dtype": None}).to_dict() for value in (config, back))
    full, again = (arch.standard(architecture, value) for value in (config, back))
    for key, (value, _) in architecture.pairs.items():
        assert again.get(value) == pytest.approx(full.get(value)), key
    same = (
        "hidden_size",
        "head_dim",
        "rms_norm_eps",
        "rope_parameters",
        "vocab_size",
        "hidden_act",
    )
    rope = first.get("rope_parameters")
    for given in (first, second):
        if given.get("rope_parameters") and given["rope_parameters"].get("partial_rotary_factor") == 1.0:
            del given["rope_parameters"]["partial_rotary_factor"]
    differ = (
        ("head_dim",) if None in (first.get("head_dim"), second.get("head_dim")) else ()
    )  # said where transformers derives it
    if "long_factor" in (rope or {}):
        differ += ("rope_parameters",)  # in float32 there
    assert {key: first.get(key) for key in same if key not in differ} == {
        key: second.get(key) for key in same if key not in differ
    }


def test_rope_freqs_are_those_of_llama_cpps_converter() -> None:
    import math

    import torch

    for head_dim, factor in ((64, 32.0), (128, 8.0)):
        config = {**CONFIG, "head_dim": head_dim, "rope_parameters": {**LLAMA31, "factor": factor}}
        wanted = []
        for freq in 1.0 / (500000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)):
            wavelength = 2 * math.pi / freq
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            middle = 1 / ((1 - smooth) / factor + smooth)
            wanted.append(1.0 if wavelength < 8192 / 4 else factor if wavelength > 8192 else float(middle))
        found = gguf_config.extra_tensors(LLAMA, config)[gguf_tensors.ROPE_FREQS]
        assert np.allclose(found, np.array(wanted, dtype=np.float32), rtol=5e-7, atol=0)
        assert found.dtype == np.float32


def test_both_spellings_of_rope_are_read() -> None:
    older = {
        **CONFIG,
        "rope_theta": 500000.0,
        "rope_scaling": {key: LLAMA31[key] for key in LLAMA31 if key != "rope_theta"},
    }
    assert gguf_config.rope(older) == gguf_config.rope({**CONFIG, "rope_parameters": LLAMA31}) == LLAMA31
    assert gguf_config.rope({**CONFIG, "rope_scaling": {"type": "linear", "factor": 2.0}})["rope_type"] == "linear"
    assert gguf_config.rope(CONFIG) == {"rope_type": "default", "rope_theta": 10000.0}


def test_linear_and_yarn_come_back() -> None:
    for rope in (
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e6,
            "original_max_position_embeddings": 32768,
            "beta_fast": 32.0,
        },
    ):
        kv = gguf_kv.values(gguf_config.encode(LLAMA, {**CONFIG, "rope_parameters": rope}))
        assert gguf_config.decode(LLAMA, kv)["rope_parameters"] == rope


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
            "rope_type 'longrope' is not supported for llama",
        ),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic'"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0}, "attention_factor = 2.0"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor makes 32 of 64"),
    ],
)
def test_what_gguf_cannot_say_is_refused(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        gguf_config.encode(LLAMA, {**CONFIG, "rope_parameters": rope})


def test_what_config_json_cannot_say_is_refused() -> None:
    kv = gguf_kv.values(gguf_config.encode(LLAMA, CONFIG))
    with pytest.raises(UnsupportedError, match=r"llama\.expert_count = 8"):
        gguf_config.decode(LLAMA, {**kv, "llama.expert_count": 8})
    assert gguf_config.decode(LLAMA, {**kv, "llama.expert_count": 0})["vocab_size"] == 512
    with pytest.raises(UnsupportedError, match="not a llama3 rotary scaling"):
        gguf_config.decode(LLAMA, kv, {gguf_tensors.ROPE_FREQS: np.linspace(1, 3, 32, dtype=np.float32)})
    with pytest.raises(UnsupportedError, match=r"'gemma' is not supported; supported: bert, falcon, .*llama, "):
        arch.find_gguf("gemma")
    with pytest.raises(SourceError, match=r"llama\.block_count"):
        gguf_config.decode(LLAMA, {})


def test_a_sliding_window_ends_the_context() -> None:
    mistral = {**CONFIG, "model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}
    kv = gguf_kv.values(gguf_config.encode(arch.find(mistral), mistral))
    assert kv["llama.context_length"] == gguf_config.context_length(mistral) == 4096


def test_positions_that_begin_after_the_padding_are_fewer() -> None:
    roberta = {**CONFIG, "model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert gguf_config.context_length(roberta) == 512
    assert gguf_config.context_length({**roberta, "model_type": "electra"}) == 514


def test_a_config_without_a_context_has_transformers_default() -> None:
    assert gguf_config.context_length({**CONFIG, "max_position_embeddings": None}) == 2048


def test_the_header_is_as_gguf_py_reads_it(smol: Path) -> None:
    import gguf

    header, reader = gguf_kv.read(smol), gguf.GGUFReader(smol)
    for pair in header.pairs:
        assert reader.fields[pair.key].contents() == pair.value, pair.key
        assert reader.fields[pair.key].types[0].name == pair.kind
    for record, tensor in zip(header.tensors, reader.tensors, strict=True):
        assert (record.name, record.dimensions, record.ggml_type) == (
            tensor.name,
            tuple(tensor.shape),
            tensor.tensor_type,
        )
        assert header.data_offset + record.offset == tensor.data_offset


def test_a_damaged_header_is_said_to_be(smol: Path, tmp_path: Path) -> None:
    data = bytearray(smol.read_bytes()[:20000])
    for at, value in ((24, 0xFF), (31, 0x7F), (60, 0xFF), (1500, 0xC3)):
        (tmp_path / "x.gguf").write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
        with pytest.raises(SourceError, match=r"x\.gguf: the GGUF header breaks off or is damaged"):
            gguf_kv.read(tmp_path / "x.gguf")
