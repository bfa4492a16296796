"""A text becomes token sequences the way llama-perplexity makes them, so that its figures can be set beside ours."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnresolvedError
from quantkit.values import Tokenizer

TEXTS = 4  # an encoder is given a chunk in so many texts: of 512 tokens, sentences' or paragraphs' length


@dataclass(frozen=True, slots=True)
class Sequences:
    """What a model is given: tokens (n, length), and what an encoder-decoder's decoder is given (n, its length)."""

    tokens: NDArray[np.int32]
    decoder_tokens: NDArray[np.int32] | None = None


def ask(
    kind: Literal["decoder", "encoder", "encoder-decoder"],
    path: Path,
    tokenizer: Tokenizer,
    *,
    chunks: int,
    length: int,
    decoder_start: int = 0,
    seed: int | None = None,
) -> Sequences:
    """Pieces of the text at `path`, of `length` tokens each, for a kind of model. Errors as of `cut`.

    A decoder is given them as they are. An encoder is given each in TEXTS texts (chunks * TEXTS, length // TEXTS), begun and
    ended as its tokenizer does. An encoder-decoder is given the first half, ended so, and its decoder `decoder_start` and the
    second half: how it would go on.
    """
    if kind == "decoder":
        return Sequences(cut(path, tokenizer, chunks=chunks, length=length, seed=seed))
    pieces = _pieces(path, _engine(tokenizer), [], chunks=chunks, length=length, seed=seed)
    begin, end = _ends(_engine(tokenizer))
    if kind == "encoder":
        texts = np.array(pieces, np.int32).reshape(chunks * TEXTS, length // TEXTS)
        return Sequences(_ended(texts, begin, end))
    both = np.array(pieces, np.int32)
    answers = both[:, length // 2 - 1 : -1].copy()
    answers[:, 0] = decoder_start
    return Sequences(_ended(both[:, : length // 2], begin, end), answers)


def cut(path: Path, tokenizer: Tokenizer, *, chunks: int, length: int, seed: int | None = None) -> NDArray[np.int32]:
    """The first `chunks` pieces of `length` tokens of the UTF-8 text at `path`, or with a seed any of them, in order.

    The text is tokenised once and whole; names of special tokens in it are ordinary text. Where the tokenizer begins a
    text with a BOS token, every chunk's first token is replaced by it (llama.cpp, tools/perplexity). Returns
    (chunks, length); raises UnresolvedError where the text is too short.
    """
    engine = _engine(tokenizer)
    bos = _bos(engine, tokenizer.config)
    first = [] if bos is None else [bos]
    tokens = np.array(_pieces(path, engine, first, chunks=chunks, length=length, seed=seed), np.int32)
    if bos is not None:
        tokens[:, 0] = bos
    return tokens


def _pieces(path: Path, engine: Any, first: list[int], *, chunks: int, length: int, seed: int | None) -> list[list[int]]:
    """Of the tokens `first` and of the text, `chunks` pieces of `length`."""
    text = path.read_bytes().decode("utf-8")  # read_text would change its line ends
    ids = first + engine.encode(text, add_special_tokens=False).ids
    if len(ids) < chunks * length:
        raise UnresolvedError(
            f"{path.name}: the text is {len(ids)} tokens with this tokenizer, {chunks} chunks of {length} need "
            f"{chunks * length}: use a longer text or at most {len(ids) // length} chunks"
        )
    pieces: Sequence[int] = range(len(ids) // length)
    if seed is not None:
        dice = random.Random(seed)  # whose random() gives the same numbers in every release of Python
        pieces = sorted(sorted(pieces, key=lambda _: dice.random())[:chunks])
    return [ids[piece * length : (piece + 1) * length] for piece in pieces[:chunks]]


def _ends(engine: Any) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    bare, full = engine.encode("a", add_special_tokens=False).ids, engine.encode("a", add_special_tokens=True).ids
    at = next(start for start in range(len(full)) if full[start : start + len(bare)] == bare)
    return full[:at], full[at + len(bare) :]


def _ended(texts: NDArray[np.int32], begin: list[int], end: list[int]) -> NDArray[np.int32]:
    """Texts (n, length) with their first and last tokens replaced by those."""
    found = texts.copy()
    found[:, : len(begin)] = begin
    found[:, found.shape[1] - len(end) :] = end
    return found


def _engine(tokenizer: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Engine

    engine = Engine.from_str(json.dumps(tokenizer.definition))
    engine.encode_special_tokens = True
    engine.no_truncation()
    engine.no_padding()
    return engine


def _bos(engine: Any, config: Mapping[str, Any]) -> int | None:
    """The token that the tokenizer puts before a text, if any: what its configuration says, else what it does."""
    token = config.get("bos_token")
    bos: int | None = engine.token_to_id(token["content"] if isinstance(token, Mapping) else token) if token else None
    said = config.get("add_bos_token")
    if isinstance(said, bool):
        return bos if said else None
    bare, full = engine.encode("a", add_special_tokens=False).ids, engine.encode("a", add_special_tokens=True).ids
    return int(full[0]) if len(full) > len(bare) and full[0] != bare[0] else None
