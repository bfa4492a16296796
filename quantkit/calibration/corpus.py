"""A text becomes token sequences the way llama-perplexity makes them, so that its figures can be set beside ours."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnresolvedError
from quantkit.values import Tokenizer


def cut(path: Path, tokenizer: Tokenizer, *, chunks: int, length: int, seed: int | None = None) -> NDArray[np.int32]:
    """The first `chunks` pieces of `length` tokens of the UTF-8 text at `path`, or with a seed any of them, in order.

    The text is tokenised once and whole; names of special tokens in it are ordinary text. Where the tokenizer begins a
    text with a BOS token, every chunk's first token is replaced by it (llama.cpp, tools/perplexity). Returns
    (chunks, length); raises UnresolvedError where the text is too short.
    """
    text = path.read_bytes().decode("utf-8")  # read_text would change its line ends
    engine = _engine(tokenizer)
    ids = engine.encode(text, add_special_tokens=False).ids
    bos = _bos(engine, tokenizer.config)
    if bos is not None:
        ids.insert(0, bos)
    if len(ids) < chunks * length:
        raise UnresolvedError(
            f"{path.name}: the text is {len(ids)} tokens with this tokenizer, {chunks} chunks of {length} need "
            f"{chunks * length}: use a longer text or at most {len(ids) // length} chunks"
        )
    pieces: Sequence[int] = range(len(ids) // length)
    if seed is not None:
        dice = random.Random(seed)  # whose random() gives the same numbers in every release of Python
        pieces = sorted(sorted(pieces, key=lambda _: dice.random())[:chunks])
    tokens = np.array([ids[piece * length : (piece + 1) * length] for piece in pieces[:chunks]], np.int32)
    if bos is not None:
        tokens[:, 0] = bos
    return tokens


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
