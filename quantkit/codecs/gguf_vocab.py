"""Vocabulary: tokenizer.json and tokenizer_config.json <-> the GGUF pairs under "tokenizer.".

Four kinds: byte-level BPE (GGUF's "gpt2": merges and a pre-tokenizer's name), SentencePiece's BPE with byte fallback
("llama": scores) and Unigram ("t5": scores and a character map), and WordPiece ("bert").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.codecs import gguf_pre, gguf_sentencepiece, gguf_special, gguf_tokens, gguf_wordpiece
from quantkit.codecs.gguf_kv import KeyValue, require
from quantkit.codecs.gguf_special import GGML, array, flag, generation, number, string_pair
from quantkit.codecs.gguf_tokens import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from quantkit.errors import UnsupportedError
from quantkit.values import Tokenizer

__all__ = ["decode", "deviations", "encode", "generation"]

_MODELS = "byte-level BPE, BPE with byte fallback, Unigram, WordPiece"
_ADDED = (UNKNOWN, CONTROL, USER_DEFINED)


def encode(
    tokenizer: Tokenizer, config: Mapping[str, Any], generation_config: Mapping[str, Any], pre: str | None = None
) -> list[KeyValue]:
    """The pairs under "tokenizer." for a checkpoint's tokenizer, padded to config["vocab_size"].

    `pre` overrides the recognised pre-tokenizer. Raises UnsupportedError, SourceError.
    """
    definition, size = tokenizer.definition, config["vocab_size"]
    model = definition["model"]
    kind, fallback = _kind(model), bool(model.get("byte_fallback"))
    unknown = None
    if kind == "t5":
        unknown = model["vocab"][model.get("unk_id") or 0][0]
    elif kind == "llama":
        unknown = model.get("unk_token")
    tokens, kinds = gguf_tokens.encode(definition, size, unknown=unknown, fallback=fallback)
    if kind == "bert":
        pairs = gguf_wordpiece.encode(definition)
        tokens = gguf_wordpiece.visible(tokens, kinds)
    elif kind == "t5":
        pairs = gguf_sentencepiece.encode_unigram(definition, tokens, kinds)
    elif kind == "llama":
        pairs = gguf_sentencepiece.encode_bpe(definition, tokens, kinds, pre)
    else:
        pairs = [string_pair("model", "gpt2"), string_pair("pre", pre or gguf_pre.find(definition)), _merges(model)]
        if (prefix := tokenizer.config.get("add_prefix_space")) is not None:
            pairs.append(flag("add_space_prefix", prefix))
    gguf_tokens.refuse_twins(tokens)
    pairs += [array("tokens", tokens, "STRING"), array("token_type", kinds, "INT32")]
    if kind == "bert" or "type_vocab_size" in config:
        pairs.append(number("token_type_count", config.get("type_vocab_size", 1)))
    ids = gguf_tokens.vocabulary(definition)
    return pairs + gguf_special.encode(tokenizer, ids, config, generation_config, size)


def _kind(model: Mapping[str, Any]) -> str:
    """tokenizer.ggml.model of a tokenizer.json's model. Raises UnsupportedError."""
    name = model.get("type") or ("BPE" if "merges" in model else None)  # old files name no type
    if name == "BPE":
        return "llama" if model.get("byte_fallback") else "gpt2"
    kinds = {"Unigram": "t5", "WordPiece": "bert"}
    if name not in kinds:
        raise UnsupportedError(f"tokenizer.json: a {name} model is not supported; supported: {_MODELS}")
    return kinds[name]


def _merges(model: Mapping[str, Any]) -> KeyValue:
    merges = [f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in gguf_pre.pairs_of(model)]
    return array("merges", merges, "STRING")


def deviations(tokenizer: Tokenizer, pre: str | None = None) -> dict[str, str]:
    """Kinds of sample text (checks/tokenizer.py) on which llama.cpp is known to tokenise otherwise, whoever converts -> why.

    `pre`: as in `encode`.
    """
    definition = tokenizer.definition
    kind = _kind(definition["model"])
    always = {
        "strips": "llama.cpp knows no lstrip or rstrip of added tokens",
        "normalized": "llama.cpp looks for added tokens in the text as written, this definition in normalised text",
    }
    if kind == "gpt2":
        return always | gguf_pre.differs(pre or next(iter(gguf_pre.named(definition)), ""))
    if kind == "bert":
        return always | gguf_wordpiece.differs(definition)
    return always | gguf_sentencepiece.differs(definition)


def decode(kv: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF's pairs: a definition that tokenizers and PreTrainedTokenizerFast load.

    Raises UnsupportedError for a vocabulary of another kind, SourceError for missing pairs.
    """
    kind, tokens = require(kv, GGML + "model"), list(require(kv, GGML + "tokens"))
    kinds = kv.get(GGML + "token_type") or [NORMAL] * len(tokens)
    if kind == "bert":
        tokens = gguf_wordpiece.hidden(tokens, kinds)
    vocab = {token: n for n, token in enumerate(tokens) if not (kinds[n] == UNUSED and token.endswith(f"[PAD{n}]"))}
    bos, eos = True, None
    pre = kv.get(GGML + "pre", "default")
    if kind in ("llama", "gemma4") or (kind == "gpt2" and pre in gguf_sentencepiece.RAW):
        model, rules = gguf_sentencepiece.decode_bpe(kv, tokens, kinds, vocab)
        bos = kind == "llama" or pre != "sarvam-moe"  # llama.cpp forces it on for Gemma 4's
    elif kind == "gpt2":
        model, rules = _byte_level(kv, vocab)
        bos = gguf_pre.get(pre).add_bos
    elif kind == "t5":
        model, rules = gguf_sentencepiece.decode_unigram(kv, tokens, kinds)
        bos, eos = False, True
    elif kind == "bert":
        kv = {**_BERT, **kv}
        kv |= {GGML + "add_bos_token": True, GGML + "add_eos_token": True}  # whatever the file says
        kv.setdefault(GGML + "eos_token_id", kv[GGML + "seperator_token_id"])
        model, rules = gguf_wordpiece.decode(kv, tokens[kv[GGML + "unknown_token_id"]], vocab)
    else:
        raise UnsupportedError(f"tokenizer.ggml.model {kind!r} is not supported; supported: gpt2, llama, gemma4, t5, bert")
    config = gguf_special.settings(kv, tokens, bos=bos, eos=eos)
    added = [_added(tokens[n], n, kinds[n]) for n in range(len(tokens)) if kinds[n] in _ADDED]
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **rules,
        "post_processor": gguf_special.post_processor(config, vocab, bool(kv.get(GGML + "add_sep_token"))), "model": model,
    }  # fmt: skip
    return Tokenizer(definition, config, kv.get("tokenizer.chat_template"))


_BERT = {GGML + f"{name}_token_id": n for name, n in {"bos": 101, "unknown": 100, "seperator": 102}.items()}
"""What llama.cpp takes for a WordPiece vocabulary that does not say."""


def _byte_level(kv: Mapping[str, Any], vocab: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    rules = gguf_pre.encode(kv.get(GGML + "pre", "default"))
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, **rules.pop("model"), "vocab": dict(vocab),
        "merges": [merge.split(" ", 1) for merge in require(kv, GGML + "merges")],
    }  # fmt: skip
    rules["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return model, rules


def _added(token: str, number: int, kind: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": kind != USER_DEFINED}
