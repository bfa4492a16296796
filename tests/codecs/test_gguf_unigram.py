"""SentencePiece's Unigram: llama.cpp's tokens on trained vocabularies with a character map, both ways, and refusals."""

from __future__ import annotations

import base64
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXT
from vocabularies import differences, engine, lines, llama, plain, written

from quantkit.codecs import gguf_kv, gguf_sentencepiece, gguf_vocab
from quantkit.engines import llama_cpp
from quantkit.errors import UnsupportedError
from quantkit.values import Tokenizer


def charsmap(rules: dict[bytes, bytes]) -> bytes:
    """SentencePiece's character map (Darts' double array and the replacements) for sources of one byte."""
    # Unit layout: offset << 10 | has_leaf << 8 | label; a leaf's value in a unit with bit 31 set. Node 0 is the root.
    units, texts = [0] * 512, b""
    base = 256  # the root's children lie at base ^ label
    units[0] = base << 10
    free = 1
    for source, target in rules.items():
        (label,) = source
        place = base ^ label
        while units[free] or (place ^ free) >= 1 << 20 or base <= free < base + 256:
            free += 1
        units[place] = (place ^ free) << 10 | 1 << 8 | label
        units[free] = 1 << 31 | len(texts)
        texts += target + b"\0"
    array = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(array)) + array + texts


@cache
def trained(collapse: bool, prefix: bool, mapped: bool) -> Tokenizer:
    """A small Unigram vocabulary in T5's order, with two sentinels."""
    from tokenizers import AddedToken, models, processors, trainers
    from tokenizers import Tokenizer as Engine

    marks = ["<pad>", "</s>", "<unk>"]
    found = Engine(models.Unigram())
    symbols = charsmap({b"\t": b" ", b"\n": b" ", b"\r": b" ", b"&": b" and ", b"~": b"-"}) if mapped else b""
    rules = gguf_sentencepiece.unigram_rules(symbols, prefix=prefix, collapse=collapse)
    found = Engine.from_str(json.dumps(json.loads(found.to_str()) | rules))
    letters = [chr(code) for code in (*range(33, 127), *range(0x410, 0x450))]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=marks, unk_token="<unk>", initial_alphabet=letters, show_progress=False
    )
    found.train_from_iterator([TEXT] * 4, trainer)
    found.add_special_tokens([AddedToken("<extra_id_1>"), AddedToken("<extra_id_0>")])
    found.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return Tokenizer(json.loads(found.to_str()), names, None)


@pytest.mark.parametrize(("collapse", "prefix", "mapped"), [(True, True, True), (True, True, False), (False, False, True)])
def test_llama_cpp_has_the_same_tokens(collapse: bool, prefix: bool, mapped: bool, tmp_path: Path) -> None:
    ours = trained(collapse, prefix, mapped)
    size = len(ours.definition["model"]["vocab"]) + 10
    pairs = gguf_vocab.encode(ours, {"vocab_size": size}, {})
    kv = gguf_kv.values(pairs)
    assert kv["tokenizer.ggml.model"] == "t5"
    assert kv["tokenizer.ggml.token_type"][:3] == [3, 3, 2]
    assert kv["tokenizer.ggml.token_type"][-1] == 5
    assert kv["tokenizer.ggml.scores"][-1] == -10000.0
    assert kv["tokenizer.ggml.remove_extra_whitespaces"] is collapse
    assert kv["tokenizer.ggml.add_space_prefix"] is prefix
    assert ("tokenizer.ggml.precompiled_charsmap" in kv) is mapped
    assert [kv[f"tokenizer.ggml.add_{end}_token"] for end in ("bos", "eos")] == [False, True]
    path = written(pairs, tmp_path / "v.gguf")
    theirs = llama(path)
    texts = lines(1500, ["<extra_id_0>", "</s>"])
    if collapse and not mapped:  # llama.cpp knows the space alone; the map makes spaces of the others
        texts = [text for text in texts if not any(letter.isspace() and letter != " " for letter in text)]
    if not collapse:  # the tokenizers library maps a line end of two characters as one
        texts = [text.replace("\r\n", "\n") for text in texts]
    if mapped:  # this map knows ASCII's
        texts = [text for text in texts if not any(letter in text for letter in "\u00a0\u3000")]
    assert len(texts) > 100
    assert differences(plain(ours.definition), theirs, texts) == []
    back = gguf_vocab.decode(kv)
    assert differences(plain(back.definition), theirs, texts) == []
    assert gguf_vocab.encode(back, {"vocab_size": size}, gguf_vocab.generation(kv)) == pairs
    opened = llama_cpp.open_vocabulary(path)
    assert opened.tokenise("hello", ends=True) == engine(back.definition).encode("hello").ids
    opened.close()


def test_the_character_map_survives_byte_for_byte() -> None:
    ours = trained(True, True, True)
    kv = gguf_kv.values(gguf_vocab.encode(ours, {"vocab_size": 500}, {}))
    wanted = base64.b64decode(ours.definition["normalizer"]["precompiled_charsmap"])
    assert bytes(kv["tokenizer.ggml.precompiled_charsmap"]) == wanted
    assert gguf_vocab.decode(kv).definition["normalizer"] == ours.definition["normalizer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "no such step in a Unigram vocabulary: .*NFKC"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}}, "no such step"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "without '▁' for spaces"),
    ],
)
def test_steps_that_llama_cpp_lacks_are_refused(change: dict[str, Any], message: str) -> None:
    definition = {**trained(True, True, True).definition, **change}
    with pytest.raises(UnsupportedError, match=message):
        gguf_vocab.encode(Tokenizer(definition, {}, None), {"vocab_size": 500}, {})


def test_known_differences_are_said() -> None:
    definition = dict(trained(False, True, False).definition)
    definition["model"] = {**definition["model"], "byte_fallback": True}
    assert sorted(gguf_vocab.deviations(Tokenizer(definition, {}, None))) == ["crlf", "edges", "normalized", "rare", "strips"]
