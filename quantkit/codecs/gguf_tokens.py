"""The list of tokens and their types: what every kind of vocabulary shares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.errors import SourceError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
SPACE = "\u2581"  # SentencePiece's visible space
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)


def vocabulary(definition: Mapping[str, Any]) -> dict[str, int]:
    """Every token of a tokenizer.json -> its id, added ones too."""
    listed = definition["model"]["vocab"]
    found = listed if isinstance(listed, Mapping) else {token: number for number, (token, _) in enumerate(listed)}
    return {**found, **{added["content"]: added["id"] for added in definition.get("added_tokens", ())}}


def unreachable(definition: Mapping[str, Any], size: int) -> list[str]:
    """Added tokens without a row in an embedding of `size`: they are left out (Gemma 3's text models have one of pictures)."""
    return [added["content"] for added in definition.get("added_tokens", ()) if added["id"] >= size]


def encode(definition: Mapping[str, Any], size: int, *, unknown: str | None, fallback: bool) -> tuple[list[str], list[int]]:
    """Text and type of every id below `size`; ids that nothing uses are [PAD{id}], unused.

    unknown: the token that stands for what the vocabulary lacks, if it has a type of its own.
    fallback: whether <0x00> to <0xFF> are bytes.
    Raises SourceError for a trained token beyond `size`, and for a text that two ids share, at which llama.cpp ends.
    """
    listed = definition["model"]["vocab"]
    vocab = listed if isinstance(listed, Mapping) else {token: number for number, (token, _) in enumerate(listed)}
    if vocab and (last := max(vocab, key=vocab.__getitem__)) and vocab[last] >= size:
        raise SourceError(
            f"tokenizer.json gives {last!r} the id {vocab[last]}, but config.json's vocab_size is {size}: "
            "the embedding has no row for it"
        )
    found = {number: (token, NORMAL) for token, number in vocab.items()}
    if fallback:
        found |= {vocab[token]: (token, BYTE) for token in (f"<0x{byte:02X}>" for byte in range(256)) if token in vocab}
    if unknown is not None and unknown in vocab:
        found[vocab[unknown]] = (unknown, UNKNOWN)
    for added in definition.get("added_tokens", ()):
        text = added["content"]
        if text == unknown:
            found[added["id"]] = (text, UNKNOWN)
        elif added["special"] or _LOOKS_SPECIAL.fullmatch(text):
            found[added["id"]] = (text, CONTROL)
        else:
            found[added["id"]] = (text.replace(SPACE, " "), USER_DEFINED)
    full = [found.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    return [token for token, _ in full], [kind for _, kind in full]


def refuse_twins(tokens: Sequence[str]) -> None:
    """Raises SourceError for a text that two ids share: llama.cpp aborts on it."""
    if len(set(tokens)) < len(tokens):
        seen: dict[str, int] = {}
        for number, token in enumerate(tokens):
            if token in seen:
                raise SourceError(
                    f"tokenizer.json: tokens {seen[token]} and {number} are both {token!r} to llama.cpp, "
                    "which loads no vocabulary with twins"
                )
            seen[token] = number
