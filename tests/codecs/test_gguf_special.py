"""Special tokens, ends and templates; vocabularies that need a choice: raw merges, merges that are ignored, tokens left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXT
from vocabularies import differences, engine, lines, llama, plain, written

from quantkit.codecs import gguf_kv, gguf_pre, gguf_special, gguf_vocab
from quantkit.errors import UnsupportedError
from quantkit.values import Tokenizer


def byte_level(names: list[str], **settings: Any) -> Tokenizer:
    """A byte-level BPE of the alphabet and nothing more, with special tokens from id 256 on."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers

    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    found = Engine(models.BPE(vocab, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.add_special_tokens(names)
    return Tokenizer(json.loads(found.to_str()), settings, settings.get("chat_template"))


def kv(ours: Tokenizer, config: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> dict[str, Any]:
    found = gguf_kv.values(gguf_vocab.encode(ours, {"vocab_size": 300, **(config or {})}, generation or {}))
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


def test_code_llamas_infilling_tokens_have_their_ids() -> None:
    names = ["<PRE>", "<MID>", "<SUF>", "<EOT>", "</s>"]
    said = {
        "prefix_token": "<PRE>",
        "middle_token": "<MID>",
        "suffix_token": "<SUF>",
        "eot_token": "<EOT>",
        "eos_token": "</s>",
    }
    found = kv(byte_level(names, **said), generation={"eos_token_id": [260, 259, 258]})
    assert [found[f"fim_{place}_token_id"] for place in ("pre", "mid", "suf")] == [256, 257, 258]
    assert (found["eot_token_id"], found["eom_token_id"], found["eos_token_id"]) == (259, 258, 260)


def test_ends_come_from_config_where_generation_config_is_silent() -> None:
    ours = byte_level(["<a>", "<b>", "<c>", "<d>"])
    found = kv(ours, {"eos_token_id": [257, 258, 999], "bos_token_id": 256, "pad_token_id": -1})
    assert (found["bos_token_id"], found["eos_token_id"], found["eot_token_id"]) == (256, 257, 258)
    assert "eom_token_id" not in found
    assert "padding_token_id" not in found


def test_a_token_with_flags_is_found_by_its_content() -> None:
    found = kv(byte_level(["<s>"], bos_token={"content": "<s>", "lstrip": False}), {"bos_token_id": 3})
    assert found["bos_token_id"] == 256


@pytest.mark.parametrize(("pair", "sep"), [("<s> $A </s> </s> $B </s>", True), ("<s> $A </s> $B </s>", False)])
def test_a_second_separator_between_two_texts_is_said(pair: str, sep: bool) -> None:
    from tokenizers import processors

    ours = byte_level(["<s>", "</s>"], cls_token="<s>", sep_token="</s>")
    whole = engine(ours.definition)
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    found = kv(Tokenizer(json.loads(whole.to_str()), ours.config, None))
    assert (found["bos_token_id"], found["eos_token_id"], found["seperator_token_id"]) == (256, 257, 257)
    assert (found["add_bos_token"], found["add_eos_token"], found["add_sep_token"]) == (True, True, sep)
    back = gguf_vocab.decode({f"tokenizer.ggml.{key}": value for key, value in found.items()})
    assert engine(back.definition).encode("a", "b").tokens == whole.encode("a", "b").tokens


def test_truncation_and_padding_do_not_hide_the_ends() -> None:
    from tokenizers import processors

    ours = byte_level(["<s>", "</s>", "<pad>"], bos_token="<s>", eos_token="</s>")
    whole = engine(ours.definition)
    whole.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)])
    whole.enable_padding(length=16, pad_id=258, pad_token="<pad>")
    found = kv(Tokenizer(json.loads(whole.to_str()), ours.config, None))
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, True)


def test_names_of_templates_are_letters_and_digits() -> None:
    listed = [{"name": "default", "template": "D"}, {"name": "tool-use v2", "template": "T"}]
    ours = byte_level(["<s>"], chat_template=listed)
    found = kv(Tokenizer(ours.definition, ours.config, "D"))
    assert found["tokenizer.chat_templates"] == ["tool_use_v2"]
    assert found["tokenizer.chat_template.tool_use_v2"] == "T"
    assert found["tokenizer.chat_template"] == "D"


def test_an_added_token_without_a_row_is_left_out() -> None:
    ours = byte_level(["<s>", "<image>"])
    found = kv(ours, {"vocab_size": 257})
    assert found["tokens"][256:] == ["<s>"]


def test_an_unset_type_is_bpe() -> None:
    ours = copy.deepcopy(byte_level(["<s>"]))
    del ours.definition["model"]["type"]
    assert kv(ours)["pre"] == "gpt-2"


def test_ignored_merges_do_where_they_change_nothing_and_are_refused_where_they_do() -> None:
    rules = gguf_pre.encode("gpt-4o")
    ours = byte_level([])
    vocab: dict[str, int] = ours.definition["model"]["vocab"]
    size = len(vocab)
    model = {**ours.definition["model"], "vocab": {**vocab, "he": size, "hel": size + 1}, "ignore_merges": True}
    definition = {
        **ours.definition,
        "pre_tokenizer": rules["pre_tokenizer"],
        "model": {**model, "merges": [["h", "e"], ["he", "l"]]},
    }
    assert kv(Tokenizer(definition, {}, None))["pre"] == "gpt-4o"
    broken = {**definition, "model": {**model, "merges": [["h", "e"]]}}
    with pytest.raises(UnsupportedError, match=r"ignore_merges is true, .* 1 tokens differ by it, 'hel' among them"):
        kv(Tokenizer(broken, {}, None))
    assert gguf_vocab.deviations(Tokenizer(broken, {}, None), "youtu").keys() == {"normalized", "strips"}  # llama.cpp knows it
    assert gguf_vocab.deviations(Tokenizer(broken, {}, None)).keys() == {"case", "marks", "normalized", "strips"}


def raw_bpe() -> Tokenizer:
    """A BPE with byte fallback whose merges are not all that its pieces allow, as the tokenizers library trains it."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, normalizers, trainers

    found = Engine(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    found.normalizer = normalizers.Replace(" ", "▁")
    marks = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    found.train_from_iterator(
        [TEXT.replace("\n", " ")] * 4, trainers.BpeTrainer(vocab_size=800, special_tokens=marks, show_progress=False)
    )
    definition = json.loads(found.to_str())
    definition["added_tokens"] = definition["added_tokens"][:1]
    return Tokenizer(definition, {"unk_token": "<unk>"}, None)


def test_raw_merges_are_written_for_a_raw_pre_tokenizer(tmp_path: Path) -> None:
    ours = raw_bpe()
    pairs = gguf_vocab.encode(ours, {"vocab_size": 800}, {}, "sarvam-moe")
    found = gguf_kv.values(pairs)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "sarvam-moe")
    texts = [text.replace("\n", " ") for text in lines(800, [])]
    assert differences(plain(ours.definition), llama(written(pairs, tmp_path / "raw.gguf")), texts) == []
    back = gguf_vocab.decode(found)
    assert differences(plain(back.definition), plain(ours.definition), texts) == []


def test_gemma_4s_vocabulary_is_read() -> None:
    pairs = gguf_vocab.encode(raw_bpe(), {"vocab_size": 800}, {}, "gemma4")
    found = gguf_kv.values(pairs) | {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.bos_token_id": 0}
    back = gguf_vocab.decode(found)
    assert back.definition["model"]["byte_fallback"] is True
    texts = [text.replace("\n", " ") for text in lines(300, [])]
    assert differences(plain(back.definition), plain(raw_bpe().definition), texts) == []


def test_generation_says_every_end() -> None:
    ids = {f"tokenizer.ggml.{end}_token_id": number for number, end in enumerate(("bos", "eos", "eot", "eom"))}
    assert gguf_special.generation(ids) == {"bos_token_id": 0, "eos_token_id": [1, 2, 3]}
