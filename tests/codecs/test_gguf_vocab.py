"""The vocabulary pair: exact on SmolLM2, and token for token llama.cpp's on generated lines, for every kind."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from checkpoints import TEXT, byte_level_tokenizer
from vocabularies import differences, engine, lines, llama, plain, written

from quantkit.codecs import gguf_kv, gguf_pre, gguf_tokens, gguf_vocab
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import Tokenizer


def test_smollm2_comes_back_exactly(smol: Path) -> None:
    kv = gguf_kv.read(smol).values()
    back = gguf_vocab.encode(gguf_vocab.decode(kv), {"vocab_size": 49152}, gguf_vocab.generation(kv))
    assert gguf_kv.values(back) == {key: value for key, value in kv.items() if key.startswith("tokenizer.")}


def test_smollm2_kinds_are_those_of_the_file(smol: Path) -> None:
    header = gguf_kv.read(smol)
    back = gguf_vocab.encode(gguf_vocab.decode(header.values()), {"vocab_size": 49152}, {})
    assert set(map(str, back)) == {str(pair) for pair in header.pairs if pair.key.startswith("tokenizer.")}


def test_smollm2_tokenises_as_llama_cpp(smol: Path) -> None:
    tokenizer = gguf_vocab.decode(gguf_kv.read(smol).values())
    texts = lines(2500, ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"])
    assert differences(plain(tokenizer.definition), llama(smol), texts) == []


def test_transformers_loads_what_is_decoded(smol: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    kv = gguf_kv.read(smol).values()
    tokenizer = gguf_vocab.decode(kv)
    special = {key: value for key, value in tokenizer.config.items() if key.endswith("_token") and isinstance(value, str)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=engine(tokenizer.definition), chat_template=tokenizer.chat_template, **special
    )
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id, fast.unk_token_id) == (1, 2, 2, 0)
    text = "Hello  world,\n\tit's 12345 naïve 你好 🙂"
    assert fast.decode(fast(text)["input_ids"]) == text
    shown = fast.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert shown.endswith("<|im_start|>user\nhi<|im_end|>\n")


_HARD = {  # what llama.cpp's expressions are known to take otherwise: gguf_pre_table's `differs`
    "case": "[À-ÖØ-ÞĀ-ſΑ-ΩЀ-Я]",
    "marks": "[\u093c-\u094d\u0900-\u0903]",
    "camel": "[a-z][A-Z]",
    "digits": r"\d{4,}[^\W\d]|\s\s\d",
}


def _trained(pre: str) -> Tokenizer:
    """A small byte-level BPE with the pre-tokenizer of that name."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers, trainers

    rules = gguf_pre.encode(pre)
    found = Engine(models.BPE(ignore_merges=rules["model"]["ignore_merges"]))
    shell = json.loads(found.to_str()) | {key: rules[key] for key in ("normalizer", "pre_tokenizer")}
    found = Engine.from_str(json.dumps(shell))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator([TEXT] * 4, trainer)
    found.add_special_tokens(["<|begin|>", "<|end|>"])
    found.add_tokens(["<tool>"])
    return Tokenizer(json.loads(found.to_str()), {"bos_token": "<|begin|>", "eos_token": "<|end|>"}, None)


@pytest.mark.parametrize("pre", gguf_pre.TABLE)
def test_every_pre_tokenizer_is_recognised_and_does_as_llama_cpp(pre: str, tmp_path: Path) -> None:
    tokenizer = _trained(pre)
    pairs = gguf_vocab.encode(tokenizer, {"vocab_size": 640}, {})
    kv = gguf_kv.values(pairs)
    assert kv["tokenizer.ggml.pre"] == pre
    assert kv["tokenizer.ggml.tokens"][639] == "[PAD639]"
    assert kv["tokenizer.ggml.token_type"][639] == gguf_tokens.UNUSED
    theirs = llama(written(pairs, tmp_path / "vocab.gguf"))
    hard = "|".join(_HARD[kind] for kind in gguf_pre.get(pre).differs) or "(?!)"
    texts = [text for text in lines(600, ["<|begin|>", "<|end|>", "<tool>"]) if not re.search(hard, text)]
    assert len(texts) > 200
    assert differences(plain(tokenizer.definition), theirs, texts) == []
    decoded = gguf_vocab.decode(kv)
    assert differences(plain(decoded.definition), theirs, texts) == []
    assert gguf_vocab.encode(decoded, {"vocab_size": 640}, {}) == pairs


def _sentencepiece(prefix: str) -> Tokenizer:
    """A small BPE with byte fallback as SentencePiece trains it: every pair that makes a token is a merge.

    prefix: "normalizer", as older tokenizer.json files say it, or a scheme of Metaspace.
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    core = Engine(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    core.train_from_iterator([TEXT] * 4, trainer)
    learnt = json.loads(core.to_str())["model"]
    made = ["".join(merge) for merge in learnt["merges"]]
    letters = [token for token in learnt["vocab"] if token not in made]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *made, *letters]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [
        [token[:cut], token[cut:]]
        for token in made
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    found = Engine(models.BPE(vocab, [tuple(merge) for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "normalizer":
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    found.add_special_tokens(["<unk>", "<s>", "</s>"])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
    return Tokenizer(json.loads(found.to_str()), config, None)


@pytest.mark.parametrize("prefix", ["normalizer", "always", "first", "never"])
def test_sentencepiece_does_as_llama_cpp(prefix: str, tmp_path: Path) -> None:
    tokenizer = _sentencepiece(prefix)
    size = len(tokenizer.definition["model"]["vocab"]) + 3
    pairs = gguf_vocab.encode(tokenizer, {"vocab_size": size}, {})
    kv = gguf_kv.values(pairs)
    assert kv["tokenizer.ggml.model"] == "llama"
    assert kv["tokenizer.ggml.add_space_prefix"] == (prefix != "never")
    assert kv["tokenizer.ggml.scores"][:3] == [0.0, 0.0, 0.0]
    assert kv["tokenizer.ggml.scores"][259:262] == [0.0, -1.0, -2.0]  # as SentencePiece numbers them
    assert kv["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    theirs = llama(written(pairs, tmp_path / "vocab.gguf"))
    texts = lines(1500, ["<s>", "</s>"] if prefix != "first" else [])
    # Metaspace puts no space before one that is there, and "first" none after a special token; SentencePiece and
    # llama.cpp do.
    same = [text for text in texts if prefix in ("normalizer", "never") or not re.search("(^|s>) ", text)]
    assert len(same) > 700
    assert differences(plain(tokenizer.definition), theirs, same) == []
    decoded = gguf_vocab.decode(kv)
    assert differences(plain(decoded.definition), theirs, texts) == []
    assert gguf_vocab.encode(decoded, {"vocab_size": size}, {}) == pairs


def test_bos_is_found_by_encoding_where_no_setting_says_it() -> None:
    definition = json.loads(byte_level_tokenizer().to_str())
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    kv = gguf_kv.values(gguf_vocab.encode(Tokenizer(definition, config, None), {"vocab_size": 512}, {}))
    assert kv["tokenizer.ggml.add_bos_token"] is True
    assert "tokenizer.ggml.add_eos_token" not in kv
    said = Tokenizer(definition, {**config, "add_bos_token": False}, None)
    assert gguf_kv.values(gguf_vocab.encode(said, {"vocab_size": 512}, {}))["tokenizer.ggml.add_bos_token"] is False


def test_further_ends_and_named_templates_survive() -> None:
    tokenizer = _trained("llama-bpe")
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    tokenizer = Tokenizer(tokenizer.definition, {**tokenizer.config, "chat_template": named}, "D")
    begin, end = (engine(tokenizer.definition).token_to_id(token) for token in ("<|begin|>", "<|end|>"))
    ends = {"eos_token_id": [end, begin]}
    pairs = gguf_vocab.encode(tokenizer, {"vocab_size": 640}, ends)
    kv = gguf_kv.values(pairs)
    assert kv["tokenizer.ggml.eot_token_id"] == begin
    assert kv["tokenizer.chat_templates"] == ["tool_use"]
    assert gguf_vocab.generation(kv) == {"bos_token_id": begin, "eos_token_id": [end, begin]}
    assert gguf_vocab.encode(gguf_vocab.decode(kv), {"vocab_size": 640}, gguf_vocab.generation(kv)) == pairs


def test_an_unknown_pre_tokenizer_names_the_nearest_and_the_remedy() -> None:
    definition = copy.deepcopy(dict(_trained("qwen2").definition))
    split = definition["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(r"\p{N}", r"\p{N}{1,2}", 1)
    with pytest.raises(UnsupportedError, match=r"(?s)nearest: .*\(qwen2\).*tokenizer: \{pre: qwen2\}"):
        gguf_vocab.encode(Tokenizer(definition, {}, None), {"vocab_size": 640}, {})
    kv = gguf_kv.values(gguf_vocab.encode(Tokenizer(definition, {}, None), {"vocab_size": 640}, {}, pre="qwen2"))
    assert kv["tokenizer.ggml.pre"] == "qwen2"


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="WordLevel"):
        gguf_vocab.encode(Tokenizer({"model": {"type": "WordLevel"}}, {}, None), {"vocab_size": 1}, {})
    with pytest.raises(SourceError, match=r"the id \d+, but config.json's vocab_size is 300"):
        gguf_vocab.encode(_trained("gpt-2"), {"vocab_size": 300}, {})
    with pytest.raises(UnsupportedError, match=r"tokenizer\.ggml\.pre 'default'"):
        gguf_vocab.decode({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": []})
    with pytest.raises(UnsupportedError, match=r"'rwkv'"):
        gguf_vocab.decode({"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": []})
