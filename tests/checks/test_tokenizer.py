"""The tokenizer check: llama.cpp on the real vocabulary, on pico ones, and on vocabularies that went wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest

from quantkit import source
from quantkit.checks import tokenizer
from quantkit.codecs import gguf_kv, gguf_vocab
from quantkit.engines import llama_cpp
from quantkit.errors import UnresolvedError
from quantkit.values import CheckResult, Tokenizer

pytest.importorskip("llama_cpp")


def written(ours: Tokenizer, size: int, path: Path, pre: str | None = None) -> Path:
    """A file with a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    gguf_kv.write(writer, gguf_vocab.encode(ours, {"vocab_size": size}, {}, pre))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def checked(ours: Tokenizer, path: Path) -> CheckResult:
    return tokenizer.check(ours, partial(llama_cpp.open_vocabulary, path), known=gguf_vocab.deviations(ours))


def of(folder: Path) -> tuple[Tokenizer, int]:
    snapshot = source.describe(str(folder))
    assert snapshot.tokenizer is not None
    return snapshot.tokenizer, snapshot.config["vocab_size"]


def test_the_real_vocabulary_is_as_its_tokenizer(smol: Path) -> None:
    result = checked(gguf_vocab.decode(gguf_kv.read(smol).values()), smol)
    assert result.verdict == "pass", result.summary
    assert result.values["tokens"] > 1000
    assert result.values["mismatches"] == result.values["known_differences"] == 0
    assert result.engine.startswith("llama.cpp")


def test_a_pico_vocabulary_is_as_its_tokenizer(pico: Callable[[str], Path], tmp_path: Path) -> None:
    ours, size = of(pico("llama"))
    result = checked(ours, written(ours, size, tmp_path / "v.gguf"))
    assert result.verdict == "pass", result.summary


def test_a_wrong_pre_tokenizer_fails_and_says_where(pico: Callable[[str], Path], tmp_path: Path) -> None:
    ours, size = of(pico("llama"))
    result = checked(ours, written(ours, size, tmp_path / "v.gguf", pre="gpt-2"))
    assert result.verdict == "fail"
    assert "texts differ, first '" in result.summary
    assert "tokenizer.json has [" in result.summary


def test_a_vocabulary_of_another_order_fails(pico: Callable[[str], Path], tmp_path: Path) -> None:
    ours, size = of(pico("llama"))
    definition: dict[str, Any] = copy.deepcopy(dict(ours.definition))
    vocab = definition["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    other = Tokenizer(definition, ours.config, ours.chat_template)
    result = checked(ours, written(other, size, tmp_path / "v.gguf"))
    assert result.verdict == "fail"


def test_an_added_token_that_is_lost_fails(pico: Callable[[str], Path], tmp_path: Path) -> None:
    ours, _ = of(pico("llama"))
    size = 1 + max([*ours.definition["model"]["vocab"].values(), *(each["id"] for each in ours.definition["added_tokens"])])
    added = {"content": "<tool>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition = {**ours.definition, "added_tokens": [*ours.definition["added_tokens"], added | {"id": size, "special": False}]}
    more = Tokenizer(definition, ours.config, None)
    whole = checked(more, written(more, size + 1, tmp_path / "whole.gguf"))
    assert whole.verdict == "pass", whole.summary
    assert checked(more, written(Tokenizer(ours.definition, {}, None), size + 1, tmp_path / "lost.gguf")).verdict == "fail"
    told = checked(more, written(more, size, tmp_path / "beyond.gguf"))
    assert told.verdict == "pass", told.summary
    assert "left out: <tool>" in told.summary
    assert told.values["tokens_left_out"] == 1


def test_a_known_difference_is_told_and_passes(tmp_path: Path, pico: Callable[[str], Path]) -> None:
    ours, size = of(pico("llama"))
    path = written(ours, size, tmp_path / "v.gguf", pre="gpt-2")
    everything = dict.fromkeys([*tokenizer.SAMPLES, "added", "ends"], "it is known")
    result = tokenizer.check(ours, partial(llama_cpp.open_vocabulary, path), known=everything)
    assert result.verdict == "pass"
    assert result.values["known_differences"] > 0
    assert "it is known" in result.summary


def test_added_tokens_that_normalised_text_hides_are_told(tmp_path: Path) -> None:
    """SentencePiece's normalizer puts a space before the token that is looked for, too."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters]
    vocab = {token: number for number, token in enumerate(tokens)}
    steps = [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {"id": 0, "content": "<unk>", "special": True, "normalized": False, **flags},
        {"id": len(tokens), "content": "<tool>", "special": False, "normalized": True, **flags},
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    parts = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "pre_tokenizer": None, "model": model,
        "normalizer": {"type": "Sequence", "normalizers": steps}, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": parts},
    }  # fmt: skip
    ours = Tokenizer(definition, {"add_bos_token": False}, None)
    result = checked(ours, written(ours, len(tokens) + 1, tmp_path / "v.gguf"))
    assert result.verdict == "pass", result.summary
    assert "normalized: " in result.summary


def test_without_an_engine_it_is_unresolved(pico: Callable[[str], Path]) -> None:
    def absent() -> tokenizer.Vocabulary:
        raise UnresolvedError("llama.cpp cannot be used")

    result = tokenizer.check(of(pico("llama"))[0], absent)
    assert (result.verdict, result.summary) == ("unresolved", "llama.cpp cannot be used")
