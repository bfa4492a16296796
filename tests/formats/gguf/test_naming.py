"""File names by ggml's convention, read back by gguf-py's rules and by its published expression."""

from __future__ import annotations

import re

import pytest

from quantkit.formats.gguf import naming

# ggml, docs/gguf.md, "Validating Above Naming Convention"
CONVENTION = re.compile(
    r"^(?P<BaseName>[A-Za-z0-9\s]*(?:(?:-(?:(?:[A-Za-z\s][A-Za-z0-9\s]*)|(?:[0-9\s]*)))*))-(?:(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+"
    r"[A-Za-z](?:-[A-Za-z]+(\d+\.)?\d+[A-Za-z]+)?)(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?)?-(?:(?P<Version>v\d+(?:\.\d+)*))"
    r"(?:-(?P<Encoding>(?!LoRA|vocab)[\w_]+))?(?:-(?P<Type>LoRA|vocab))?(?:-(?P<Shard>\d{5}-of-\d{5}))?\.gguf$"
)


@pytest.mark.parametrize(
    ("model", "weights", "mark", "name"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, "", "SmolLM2-135M-Instruct-v1.0-Q4_K_M.gguf"),
        ("SmolLM2-135M-Instruct", 134_515_008, "gptq", "SmolLM2-135M-Instruct-gptq-v1.0-Q4_K_M.gguf"),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552, "gptq", "Mistral-7B-gptq-v0.3-Q4_K_M.gguf"),
        ("Qwen/Qwen3-0.6B", 596_049_920, "gptq-static", "Qwen3-0.6B-gptq-static-v1.0-Q4_K_M.gguf"),
        ("model", 134_515_008, "static", "model-135M-static-v1.0-Q4_K_M.gguf"),
    ],
)
def test_a_mark_stands_where_a_fine_tune_s_name_does(model: str, weights: int, mark: str, name: str) -> None:
    assert naming.file_name(model, weights, "Q4_K_M", mark) == name
    found = CONVENTION.fullmatch(name)
    assert found is not None
    assert found["Encoding"] == "Q4_K_M"
    assert (found["FineTune"] or "").endswith(mark)
