"""llama.cpp against transformers on the tiny llama, and what is said of files that it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny, write_llama

from quantkit.engines import llama_cpp, llama_cpp_speed
from quantkit.errors import InputError, SourceError, UnresolvedError

pytestmark = pytest.mark.skipif(llama_cpp.available() is None, reason="llama-cpp-python is not installed")

TOKENS = np.random.default_rng(3).integers(3, 300, 96).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    _, model, weights = tiny("llama")
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_llama(path, weights.state, gguf.GGMLQuantizationType.F32)
    return path, model


def test_logits_are_those_of_transformers_from_an_empty_cache_every_time(model: tuple[Path, Any]) -> None:
    path, original = model
    with torch.no_grad():
        expected = original(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    runner = llama_cpp.open_runner(path, context=96, threads=1, exact=True)
    found = runner.logits(TOKENS)
    again = runner.logits(TOKENS)
    runner.close()
    assert found.dtype == np.float32
    assert np.square(found - expected).mean() / np.square(expected).mean() < 1e-9
    assert np.array_equal(found, again)
    assert runner.engine == f"llama.cpp (llama-cpp-python {llama_cpp.available()})"


def test_generation_is_greedy_and_stops_at_the_limit_or_the_context(model: tuple[Path, Any]) -> None:
    path, _ = model
    runner = llama_cpp.open_runner(path, context=64, threads=1)
    expected = TOKENS[:8]
    for _ in range(10):
        expected = [*expected, int(runner.logits(expected)[-1].argmax())]
    ended = expected.index(2) if 2 in expected[8:] else len(expected)
    assert runner.generate(TOKENS[:8], 10) == expected[8:ended]
    assert len(runner.generate(TOKENS[:60], 10)) <= 4
    with pytest.raises(InputError, match="65 tokens from position 0 do not fit a context of 64"):
        runner.logits(TOKENS[:65])
    runner.close()
    runner.close()


@pytest.mark.parametrize(("damage", "reason"), [("half", "bounds"), ("magic", "magic"), ("missing", "no such file")])
def test_a_broken_file_is_refused_with_the_engines_reason(
    model: tuple[Path, Any], tmp_path: Path, damage: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = model[0].read_bytes()
    path = tmp_path / "broken.gguf"
    if damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "half" else b"XXXX" + data[4:])
    with pytest.raises(SourceError, match=reason):
        llama_cpp.open_runner(path, context=64, threads=1)
    assert capfd.readouterr() == ("", "")


def test_a_measurement_runs_in_a_process_of_its_own(model: tuple[Path, Any], tmp_path: Path) -> None:
    speed = llama_cpp_speed.measure(model[0], kind="decoder", threads=1, prompt=32, decode=8, context=64)
    assert (speed.threads, speed.prompt_tokens, speed.decode_tokens) == (1, 32, 8)
    assert speed.prefill_tokens_per_s > 0 < speed.decode_tokens_per_s
    assert 10 << 20 < speed.peak_rss_bytes < 300 << 20, "the child's own peak, not that of this process with torch"
    with pytest.raises(UnresolvedError, match="no such file"):
        llama_cpp_speed.measure(tmp_path / "none.gguf", kind="decoder", threads=1, prompt=32, decode=8, context=64)


def test_a_build_with_amx_keeps_matrices_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products of matrices in AMX's order end the process."""
    library = llama_cpp.load_library()
    for amx in (0, 1):
        said = f"CPU : AVX2 = 1 | AMX_INT8 = {amx} | REPACK = 1 | ".encode()
        monkeypatch.setattr(library, "llama_print_system_info", lambda said=said: said)
        assert bool(llama_cpp._model_settings(library).use_extra_bufts) == (not amx)


def test_without_the_engine_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama_cpp.load_library.cache_clear()
    assert llama_cpp.available() is None
    with pytest.raises(UnresolvedError, match=r"pip install 'quantkit-pipeline\[llama\]'"):
        llama_cpp.open_runner(tmp_path / "any.gguf", context=64, threads=1)


def test_a_vocabulary_opens_without_its_weights_and_gives_text_back(smol: Path) -> None:
    held = llama_cpp.open_vocabulary(smol)
    assert held.size == 49152
    text = "<|im_start|>naïve 你好 🙂\n"
    tokens = held.tokenise(text)
    assert tokens[0] == 1
    assert held.text(tokens) == text
    assert held.text(tokens[-3:-1]) != text
    assert held.text([held.tokenise("🙂")[0]]) == "\ufffd"  # half a letter
    assert held.tokenise("") == []
    held.close()
    held.close()


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(SourceError, match="does not load the vocabulary of"):
        llama_cpp.open_vocabulary(tmp_path / "no.gguf")
