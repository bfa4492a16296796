"""Vocabulary: tokenizer.json and tokenizer_config.json <-> the GGUF pairs under "tokenizer.".

Two kinds: byte-level BPE (GGUF's "gpt2": merges and a pre-tokenizer's name) and SentencePiece's BPE with byte fallback
(GGUF's "llama": scores, no merges). Rules as in llama.cpp's conversion/base.py and gguf-py's SpecialVocab.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit.codecs import gguf_pre
from quantkit.codecs.gguf_kv import KeyValue, require
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_GGML = "tokenizer.ggml."
_SPACE = "\u2581"  # SentencePiece's visible space
_ADDED_SCORE = -1000.0  # of tokens outside the trained vocabulary, as llama.cpp's converter has it
_SPECIAL = {  # tokenizer_config.json's name -> GGUF's (the spelling is GGUF's)
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)


def encode(
    tokenizer: Tokenizer, config: Mapping[str, Any], generation_config: Mapping[str, Any], pre: str | None = None
) -> list[KeyValue]:
    """The pairs under "tokenizer." for a checkpoint's tokenizer, padded to config["vocab_size"].

    `pre` overrides the recognised pre-tokenizer. Raises UnsupportedError, SourceError.
    """
    model = tokenizer.definition["model"]
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"tokenizer.json: a {model['type']} model is not supported; supported: BPE")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(tokenizer.definition, config["vocab_size"], sentencepiece)
    pairs = [_string("model", "llama" if sentencepiece else "gpt2")]
    prefix = tokenizer.config.get("add_prefix_space")
    if sentencepiece:
        prefix = _space_prefix(tokenizer.definition)
        pairs += [_string("pre", pre or "default"), _array("scores", _scores(model, tokens, kinds), "FLOAT32")]
    else:
        pairs.append(_string("pre", pre or gguf_pre.find(tokenizer.definition)))
        pairs.append(_array("merges", _merges(model), "STRING"))
    pairs += [_array("tokens", tokens, "STRING"), _array("token_type", kinds, "INT32")]
    if prefix is not None:
        pairs.append(_flag("add_space_prefix", prefix))
    ids = _special_ids(tokenizer, config, tokens)
    pairs += [KeyValue(_GGML + key, number, "UINT32") for key, number in ids.items()]
    pairs += _further_ends(generation_config, ids)
    pairs += _added_ends(tokenizer, ids)
    return pairs + _templates(tokenizer)


def _string(key: str, value: str) -> KeyValue:
    return KeyValue(_GGML + key, value, "STRING")


def _flag(key: str, value: bool) -> KeyValue:
    return KeyValue(_GGML + key, bool(value), "BOOL")


def _array(key: str, value: Sequence[Any], item: str) -> KeyValue:
    return KeyValue(_GGML + key, list(value), "ARRAY", item)


def _tokens(definition: Mapping[str, Any], size: int, sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Text and type of every id below `size`; ids that nothing uses are [PAD{id}], unused."""
    vocab: dict[str, int] = definition["model"]["vocab"]
    found = {number: (token, NORMAL) for token, number in vocab.items()}
    if sentencepiece:
        found |= {vocab[token]: (token, BYTE) for token in (f"<0x{byte:02X}>" for byte in range(256)) if token in vocab}
    unknown = definition["model"].get("unk_token")
    for added in definition.get("added_tokens", ()):
        text = added["content"]
        if sentencepiece and text == unknown:
            found[added["id"]] = (text, UNKNOWN)
        elif added["special"] or _LOOKS_SPECIAL.fullmatch(text):
            found[added["id"]] = (text, CONTROL)
        else:
            found[added["id"]] = (text.replace(_SPACE, " "), USER_DEFINED)
    if found and max(found) >= size:
        token, _ = found[max(found)]
        raise SourceError(
            f"tokenizer.json gives {token!r} the id {max(found)}, but config.json's vocab_size is {size}: "
            "the embedding has no row for it"
        )
    full = [found.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    return [token for token, _ in full], [kind for _, kind in full]


def _pairs_of(model: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The merges in order; tokenizer.json has them as "a b" or as ["a", "b"]."""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in _pairs_of(model)]


def _scores(model: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> list[float]:
    """SentencePiece's scores, which tokenizer.json keeps only as the order of merges: the n-th token that a merge
    makes has -n, and tokens that none makes follow in the order of their ids."""
    order = {token: rank for rank, token in enumerate(dict.fromkeys(left + right for left, right in _pairs_of(model)))}
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == NORMAL:
            order.setdefault(token, len(order))

    def score(token: str, kind: int) -> float:
        if kind == NORMAL:
            return -float(order[token])
        return 0.0 if token in model["vocab"] else _ADDED_SCORE

    return [score(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def _space_prefix(definition: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-style definition puts a space before the text. Raises UnsupportedError."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prefix, spaces = False, False
    for step in gguf_pre.flatten(definition.get("normalizer")) + gguf_pre.flatten(definition.get("pre_tokenizer")):
        if step == {"type": "Prepend", "prepend": _SPACE}:
            prefix = True
        elif step == replace:
            spaces = True
        elif step["type"] == "Metaspace" and step.get("replacement") == _SPACE and not step.get("split", True):
            spaces, prefix = True, step.get("prepend_scheme", "always") != "never"
        else:
            raise UnsupportedError(f"tokenizer.json: llama.cpp has no such step in a SentencePiece vocabulary: {step}")
    if not spaces:
        raise UnsupportedError(f"tokenizer.json: byte_fallback without {_SPACE!r} for spaces is not supported")
    return prefix


def _special_ids(tokenizer: Tokenizer, config: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, int]:
    """GGUF key -> id: from tokenizer_config.json's token if it is in the vocabulary, else from config.json."""
    numbers = {added["content"]: added["id"] for added in tokenizer.definition.get("added_tokens", ())}
    numbers = {**tokenizer.definition["model"]["vocab"], **numbers}
    found = {}
    said = {"unk_token": tokenizer.definition["model"].get("unk_token"), **tokenizer.config}
    for name, key in _SPECIAL.items():
        number = numbers.get(_content(said.get(name)))
        if number is None:
            number = config.get(f"{name}_id")
        if isinstance(number, list):  # Llama 3.1 has several ends; the others follow as eot, eom
            number = next(iter(number), None)
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[key] = number
    return found


def _content(token: Any) -> Any:
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _further_ends(generation_config: Mapping[str, Any], ids: Mapping[str, int]) -> list[KeyValue]:
    """generation_config.json may end a text at more tokens than eos: the next two have keys of their own."""
    ends = generation_config.get("eos_token_id")
    more = [end for end in ends if end != ids.get("eos_token_id")] if isinstance(ends, list) else []
    keys = zip(("eot_token_id", "eom_token_id"), more, strict=False)
    return [KeyValue(_GGML + key, end, "UINT32") for key, end in keys]


def _added_ends(tokenizer: Tokenizer, ids: Mapping[str, int]) -> list[KeyValue]:
    """add_bos_token always (llama.cpp's default differs by vocabulary), add_eos_token if it is said or done.

    tokenizer_config.json decides, else what encoding a letter adds.
    """
    from tokenizers import Tokenizer as Engine

    said = {end: tokenizer.config.get(f"add_{end}_token") for end in ("bos", "eos")}
    if None in said.values():
        ids_of = Engine.from_str(json.dumps(tokenizer.definition)).encode("a").ids
        bos = ids_of[:1] == [ids.get("bos_token_id")]
        eos = ids_of[-1:] == [ids.get("eos_token_id")] or None  # unsaid where it is not done: so llama.cpp has it
        said = {end: done if said[end] is None else said[end] for end, done in (("bos", bos), ("eos", eos))}
    return [_flag(f"add_{end}_token", value) for end, value in said.items() if value is not None]


def _templates(tokenizer: Tokenizer) -> list[KeyValue]:
    """The chat template in force and, where tokenizer_config.json lists several by name, the others."""
    listed = tokenizer.config.get("chat_template")
    named = {item["name"]: item["template"] for item in listed} if isinstance(listed, list) else {}
    named.pop("default", None)
    pairs = [KeyValue(f"tokenizer.chat_template.{name}", text, "STRING") for name, text in named.items()]
    if named:
        pairs.insert(0, KeyValue("tokenizer.chat_templates", list(named), "ARRAY", "STRING"))
    if tokenizer.chat_template:
        pairs.append(KeyValue("tokenizer.chat_template", tokenizer.chat_template, "STRING"))
    return pairs


def decode(kv: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF's pairs: a definition that tokenizers and PreTrainedTokenizerFast load.

    Raises UnsupportedError for a vocabulary of another kind, SourceError for missing pairs.
    """
    kind, tokens = require(kv, _GGML + "model"), require(kv, _GGML + "tokens")
    kinds = kv.get(_GGML + "token_type") or [NORMAL] * len(tokens)
    unused = {f"[PAD{number}]" for number, kind in enumerate(kinds) if kind == UNUSED}
    vocab = {token: number for number, token in enumerate(tokens) if token not in unused}
    if kind == "gpt2":
        name = kv.get(_GGML + "pre", "default")
        rules, bos = gguf_pre.encode(name), gguf_pre.get(name).add_bos
        model = {**_bpe(vocab, [merge.split(" ", 1) for merge in require(kv, _GGML + "merges")]), **rules.pop("model")}
        rules["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    elif kind == "llama":
        rules, bos = _sentencepiece_rules(bool(kv.get(_GGML + "add_space_prefix", True))), True
        pieces = {token: number for token, number in vocab.items() if kinds[number] == NORMAL}
        model = _bpe(vocab, _merges_of(pieces, require(kv, _GGML + "scores")))
        model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": tokens[kv.get(_GGML + "unknown_token_id", 0)]}
    else:
        raise UnsupportedError(f"tokenizer.ggml.model {kind!r} is not supported; supported: gpt2, llama")
    config = _config(kv, tokens, bos)
    added = [_added(tokens[number], number, kinds[number]) for number in range(len(tokens)) if kinds[number] in _ADDED]
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **rules,
        "post_processor": _post_processor(config, vocab), "model": model,
    }  # fmt: skip
    return Tokenizer(definition, config, kv.get("tokenizer.chat_template"))


_ADDED = (UNKNOWN, CONTROL, USER_DEFINED)


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": dict(vocab), "merges": [list(merge) for merge in merges],
    }  # fmt: skip


def _merges_of(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first: what llama.cpp does with scores, as merges."""
    found = [
        (-scores[number], pieces[piece[:cut]], pieces[piece[cut:]], piece[:cut], piece[cut:])
        for piece, number in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(left, right) for _, _, _, left, right in sorted(found)]


def _sentencepiece_rules(prefix: bool) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _added(token: str, number: int, kind: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": kind != USER_DEFINED}


def _config(kv: Mapping[str, Any], tokens: Sequence[str], bos: bool) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in _SPECIAL.items():
        if (number := kv.get(_GGML + key)) is not None and number < len(tokens):
            config[name] = tokens[number]
    config["add_bos_token"] = kv.get(_GGML + "add_bos_token", bos)
    for name, key in {"add_eos_token": "add_eos_token", "add_prefix_space": "add_space_prefix"}.items():
        if _GGML + key in kv:
            config[name] = kv[_GGML + key]
    if names := kv.get("tokenizer.chat_templates"):
        texts = {name: kv.get(f"tokenizer.chat_template.{name}", "") for name in names}
        texts = {"default": kv.get("tokenizer.chat_template", "")} | texts
        config["chat_template"] = [{"name": name, "template": text} for name, text in texts.items()]
    return config


def _post_processor(config: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[str, Any] | None:
    """What adds bos and eos, as tokenizer_config.json says; None if nothing does."""
    before = [config["bos_token"]] if config["add_bos_token"] and "bos_token" in config else []
    after = [config["eos_token"]] if config.get("add_eos_token") and "eos_token" in config else []
    if not before + after:
        return None

    def around(*parts: tuple[str, int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, segment in parts:
            found += [{"SpecialToken": {"id": token, "type_id": segment}} for token in before]
            found.append({"Sequence": {"id": name, "type_id": segment}})
            found += [{"SpecialToken": {"id": token, "type_id": segment}} for token in after]
        return found

    special = {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in before + after}
    single, pair = around(("A", 0)), around(("A", 0), ("B", 1))
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def generation(kv: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json's part of a GGUF's pairs: where a text begins and every token at which it ends."""
    ends = [kv[key] for key in (f"{_GGML}{end}_token_id" for end in ("eos", "eot", "eom")) if key in kv]
    found = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    return found | ({"bos_token_id": kv[_GGML + "bos_token_id"]} if _GGML + "bos_token_id" in kv else {})
