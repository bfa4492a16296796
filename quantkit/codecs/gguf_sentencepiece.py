"""SentencePiece's vocabularies: BPE with byte fallback (GGUF's "llama", by scores) and Unigram (GGUF's "t5"); both ways.

Rules as in llama.cpp's conversion/base.py, t5.py and bert.py (XLM-RoBERTa).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit.codecs.gguf_kv import KeyValue, require
from quantkit.codecs.gguf_pre import flatten, pairs_of
from quantkit.codecs.gguf_special import GGML, array, flag, string_pair
from quantkit.codecs.gguf_tokens import BYTE, NORMAL, SPACE, UNKNOWN, UNUSED
from quantkit.errors import SourceError, UnsupportedError

Step = dict[str, Any]
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0  # of tokens outside the trained vocabulary, as llama.cpp's converter has them
_TO_SPACE: Step = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
RAW = ("gemma4", "sarvam-moe", "granite-embed-multi-311m")  # llama.cpp's names for merges over text that is not byte-encoded


def encode_bpe(definition: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], pre: str | None) -> list[KeyValue]:
    """Model, scores and spaces of a BPE with byte fallback. Raises UnsupportedError for steps that llama.cpp lacks.

    llama.cpp joins any two pieces that make a piece, best score first; SentencePiece's own vocabularies have a merge for
    every such pair. For one that has not, `pre` may name a raw pre-tokenizer: then the merges themselves are written.
    """
    model, prefix = definition["model"], _space_prefix(definition)
    if pre in RAW:
        merges = [f"{left} {right}" for left, right in pairs_of(model)]
        return [string_pair("model", "gpt2"), string_pair("pre", pre), array("merges", merges, "STRING")]
    scores = array("scores", _scores(model, tokens, kinds), "FLOAT32")
    return [string_pair("model", "llama"), string_pair("pre", pre or "default"), scores, flag("add_space_prefix", prefix)]


def _scores(model: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> list[float]:
    """SentencePiece's scores, which tokenizer.json keeps only as the order of merges: the n-th token that a merge
    makes has -n, and tokens that none makes follow in the order of their ids."""
    order = {token: rank for rank, token in enumerate(dict.fromkeys(left + right for left, right in pairs_of(model)))}
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == NORMAL:
            order.setdefault(token, len(order))

    def score(token: str, kind: int) -> float:
        if kind == NORMAL:
            return -float(order[token])
        if kind == UNUSED:
            return _UNUSED_SCORE
        return 0.0 if token in model["vocab"] else _ADDED_SCORE

    return [score(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


def _space_prefix(definition: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-style definition puts a space before the text. Raises UnsupportedError."""
    prefix, spaces = False, False
    for step in flatten(definition.get("normalizer")) + flatten(definition.get("pre_tokenizer")):
        if step == {"type": "Prepend", "prepend": SPACE}:
            prefix = True
        elif step == _TO_SPACE:
            spaces = True
        elif step["type"] == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True):
            spaces, prefix = True, _prepends(step)
        elif not (spaces and step["type"] == "Split" and step["pattern"] == {"String": " "}):  # Gemma's, which meets none
            raise UnsupportedError(f"tokenizer.json: llama.cpp has no such step in a SentencePiece vocabulary: {step}")
    if not spaces:
        raise UnsupportedError(f"tokenizer.json: byte_fallback without {SPACE!r} for spaces is not supported")
    return prefix


def _prepends(metaspace: Mapping[str, Any]) -> bool:
    older = "always" if metaspace.get("add_prefix_space", True) else "never"
    return bool(metaspace.get("prepend_scheme", older) != "never")


def encode_unigram(definition: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> list[KeyValue]:
    """Model, scores and text rules of a Unigram model. Raises UnsupportedError for steps that llama.cpp lacks."""
    charsmap, collapse, prefix = b"", False, None
    for step in flatten(definition.get("normalizer")) + flatten(definition.get("pre_tokenizer")):
        if step["type"] == "Precompiled" and not charsmap:
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif step["type"] == "WhitespaceSplit" or _collapses(step):
            collapse = True
        elif step["type"] == "Metaspace" and step.get("replacement") == SPACE:
            prefix = _prepends(step)
        elif step["type"] != "Strip" or not (step.get("strip_left") or step.get("strip_right")):
            raise UnsupportedError(f"tokenizer.json: llama.cpp has no such step in a Unigram vocabulary: {step}")
    if prefix is None:
        raise UnsupportedError(f"tokenizer.json: a Unigram vocabulary without {SPACE!r} for spaces is not supported")
    scores = [float(score) for _, score in definition["model"]["vocab"]]
    scores += [_ADDED_SCORE if kind != UNUSED else _UNUSED_SCORE for kind in kinds[len(scores) :]]
    pairs = [string_pair("model", "t5"), string_pair("pre", "default"), array("scores", scores[: len(tokens)], "FLOAT32")]
    pairs += [flag("add_space_prefix", prefix), flag("remove_extra_whitespaces", collapse)]
    return pairs + ([array("precompiled_charsmap", charsmap, "UINT8")] if charsmap else [])


def _collapses(step: Step) -> bool:
    """Whether a step makes one space of several."""
    pattern = step.get("pattern", {}).get("Regex")
    return bool(step["type"] == "Replace" and pattern in (" {2,}", r"\s{2,}") and step["content"] in (" ", SPACE))


def differs(definition: Mapping[str, Any]) -> dict[str, str]:
    """Kinds of sample text (checks/tokenizer.py) on which llama.cpp is known to differ, and why."""
    found = {}
    steps = flatten(definition.get("normalizer")) + flatten(definition.get("pre_tokenizer"))
    scheme = next((step.get("prepend_scheme") for step in steps if step["type"] == "Metaspace"), "never")
    if definition["model"].get("type") == "Unigram":
        if definition["model"].get("byte_fallback"):
            found["rare"] = "llama.cpp's Unigram has no byte fallback"
        if not any(step["type"] == "WhitespaceSplit" for step in steps):
            found["crlf"] = "the tokenizers library maps a line end of two characters as one"
            found["edges"] = "llama.cpp treats spaces at the ends of a text as SentencePiece does, this definition does not"
    elif scheme != "never":
        found["edges"] = "llama.cpp puts a space before a text that begins with one as SentencePiece does, Metaspace does not"
    if scheme == "first":
        found["added"] = "llama.cpp puts a space after a special token as before a text, this definition does not"
    return found


def decode_bpe(
    kv: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], vocab: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, rules) of a tokenizer.json for a BPE with byte fallback. Raises SourceError for missing pairs."""
    if written := kv.get(GGML + "merges"):
        merges: Iterable[Sequence[str]] = [_halves(merge) for merge in written]
    else:
        pieces = {token: number for token, number in vocab.items() if kinds[number] == NORMAL}
        merges = _merges_of(pieces, require(kv, GGML + "scores"))
    unknown = kv.get(GGML + "unknown_token_id", next((n for n, kind in enumerate(kinds) if kind == UNKNOWN), 0))
    model = {
        "type": "BPE", "dropout": None, "unk_token": tokens[unknown], "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": BYTE in kinds, "ignore_merges": False,
        "vocab": dict(vocab), "merges": [list(merge) for merge in merges],
    }  # fmt: skip
    raw = kv[GGML + "model"] != "llama"
    return model, _bpe_rules(bool(kv.get(GGML + "add_space_prefix", not raw)))


def _halves(merge: str) -> Sequence[str]:
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _merges_of(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first: what llama.cpp does with scores, as merges."""
    found = [
        (-scores[number], pieces[piece[:cut]], pieces[piece[cut:]], piece[:cut], piece[cut:])
        for piece, number in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(left, right) for _, _, _, left, right in sorted(found)]


def _bpe_rules(prefix: bool) -> dict[str, Any]:
    normalizers = [{"type": "Prepend", "prepend": SPACE}, _TO_SPACE] if prefix else [_TO_SPACE]
    decoders: list[Step] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def decode_unigram(kv: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, rules) of a tokenizer.json for a Unigram model. Raises SourceError for missing pairs."""
    scores = require(kv, GGML + "scores")
    size = len(tokens)
    while size and kinds[size - 1] == UNUSED and re.fullmatch(r"\[PAD\d+\]", tokens[size - 1]):
        size -= 1  # padding
    unknown = kv.get(GGML + "unknown_token_id", 2)
    if unknown >= size:
        raise SourceError(f"the GGUF's unknown token {unknown} is none of its {size} tokens")
    vocab = [[token, score] for token, score in zip(tokens[:size], scores[:size], strict=True)]
    model = {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": BYTE in kinds}
    return model, unigram_rules(
        bytes(kv.get(GGML + "precompiled_charsmap", ())),
        prefix=bool(kv.get(GGML + "add_space_prefix", False)),
        collapse=bool(kv.get(GGML + "remove_extra_whitespaces", False)),
    )


def unigram_rules(charsmap: bytes, *, prefix: bool, collapse: bool) -> dict[str, Any]:
    """normalizer, pre_tokenizer and decoder of a tokenizer.json for SentencePiece's Unigram."""
    scheme = "always" if prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    splits = [{"type": "WhitespaceSplit"}, metaspace] if collapse else [metaspace]
    text = base64.b64encode(charsmap).decode()
    return {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": text} if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "decoder": metaspace,
    }
