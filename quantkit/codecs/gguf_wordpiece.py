"""WordPiece (GGUF's "bert"): words begin with a visible space, what continues one has no "##"; both ways.

Rules as in llama.cpp's conversion/bert.py. llama.cpp's WordPiece always cleans text and splits Chinese characters; it
lowercases and strips accents unless the file says not to, which llama.cpp before its normalizer keys did not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.codecs.gguf_kv import KeyValue
from quantkit.codecs.gguf_pre import flatten
from quantkit.codecs.gguf_special import GGML, flag, string_pair
from quantkit.codecs.gguf_tokens import CONTROL, SPACE
from quantkit.errors import UnsupportedError

_PREFIX = "##"


def encode(definition: Mapping[str, Any]) -> list[KeyValue]:
    """Model and normalisation. Raises UnsupportedError for steps that llama.cpp lacks."""
    model = definition["model"]
    if model.get("continuing_subword_prefix", _PREFIX) != _PREFIX:
        raise UnsupportedError(f"tokenizer.json: WordPiece continues words with ##, not {model['continuing_subword_prefix']!r}")
    steps = flatten(definition.get("normalizer")) + flatten(definition.get("pre_tokenizer"))
    if [step["type"] for step in steps] != ["BertNormalizer", "BertPreTokenizer"]:
        raise UnsupportedError(
            f"tokenizer.json: llama.cpp's WordPiece has BertNormalizer and BertPreTokenizer alone; this one has {steps}"
        )
    normal = steps[0]
    if not (normal.get("clean_text", True) and normal.get("handle_chinese_chars", True)):
        raise UnsupportedError(
            f"tokenizer.json: llama.cpp's WordPiece always cleans text and splits Chinese characters; this one has {normal}"
        )
    lower, strip = bool(normal.get("lowercase", True)), normal.get("strip_accents")
    pairs = [string_pair("model", "bert"), string_pair("pre", "default"), flag("normalizer.lowercase", lower)]
    return pairs if strip is None else [*pairs, flag("normalizer.strip_accents", strip)]


def differs(definition: Mapping[str, Any]) -> dict[str, str]:
    """Kinds of sample text (checks/tokenizer.py) on which llama.cpp's WordPiece is known to differ, and why."""
    normal = flatten(definition.get("normalizer"))[0]
    if not (normal.get("lowercase", True) if normal.get("strip_accents") is None else normal["strip_accents"]):
        return {}
    return {
        "marks": "llama.cpp strips every combining mark, BERT's normalizer only those that take no space",
        "hangul": "llama.cpp decomposes a Korean syllable to its first letter alone",
    }


def visible(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """tokenizer.json's spelling of tokens in GGUF's."""

    def spelt(token: str, kind: int) -> str:
        if kind == CONTROL:
            return token
        return token.removeprefix(_PREFIX) if token.startswith(_PREFIX) else SPACE + token

    return [spelt(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def hidden(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """GGUF's spelling of tokens in tokenizer.json's."""

    def spelt(token: str, kind: int) -> str:
        if kind == CONTROL:
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else _PREFIX + token

    return [spelt(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def decode(kv: Mapping[str, Any], unknown: str, vocab: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, rules) of a tokenizer.json."""
    model = {
        "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": _PREFIX, "max_input_chars_per_word": 100,
        "vocab": dict(vocab),
    }  # fmt: skip
    return model, rules(kv.get(GGML + "normalizer.lowercase", True), kv.get(GGML + "normalizer.strip_accents"))


def rules(lowercase: bool, strip_accents: bool | None) -> dict[str, Any]:
    """normalizer, pre_tokenizer and decoder of a tokenizer.json for BERT's WordPiece."""
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": _PREFIX, "cleanup": True},
    }  # fmt: skip
