"""llama.cpp for models with an encoder: embeddings of BERT's kind, logits of T5's kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.engines import llama_cpp
from quantkit.engines.llama_cpp import Loaded
from quantkit.errors import InputError
from quantkit.values import F32, Embedder, Transducer


def open_embedder(path: Path, *, context: int, threads: int, exact: bool = False) -> Embedder:
    """Loads an encoder's GGUF file for texts of up to `context` tokens. Pooling is the file's; where it says none, the first
    token's state is the embedding. exact and errors: as of llama_cpp.open_runner."""
    loaded = _load(path, context, threads, exact, embeddings=True)
    library = loaded.library
    if library.llama_pooling_type(loaded.state) == library.LLAMA_POOLING_TYPE_NONE:
        loaded.close()
        loaded = _load(path, context, threads, exact, embeddings=True, pooling_type=library.LLAMA_POOLING_TYPE_CLS)
    return _Embedder(loaded, context, llama_cpp.name())


def open_transducer(path: Path, *, context: int, threads: int, exact: bool = False) -> Transducer:
    """Loads an encoder-decoder's GGUF file for texts and answers of up to `context` tokens each. exact and errors: as of
    llama_cpp.open_runner."""
    return _Transducer(_load(path, context, threads, exact), context, llama_cpp.name())


def _load(path: Path, context: int, threads: int, exact: bool, **further: int) -> Loaded:
    # An encoder sees its whole text at once: llama.cpp ends the process where a micro-batch does not hold it.
    return llama_cpp.load(path, context=context, micro_batch=context, threads=threads, exact=exact, **further)


def _fitting(tokens: Sequence[int], context: int) -> Sequence[int]:
    if not 0 < len(tokens) <= context:
        raise InputError(f"{len(tokens)} tokens do not fit a context of {context}; shorten the text")
    return tokens


@dataclass(slots=True)
class _Embedder:
    _loaded: Loaded
    _context: int
    engine: str

    def embed(self, tokens: Sequence[int]) -> F32:
        library, state = self._loaded.library, self._loaded.state
        self._loaded.run(library.llama_encode, _fitting(tokens, self._context))
        width = library.llama_model_n_embd(self._loaded.model)
        return np.ctypeslib.as_array(library.llama_get_embeddings_seq(state, 0), (width,)).astype(np.float32, copy=True)

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._loaded.close()


@dataclass(slots=True)
class _Transducer:
    _loaded: Loaded
    _context: int
    engine: str

    def logits(self, tokens: Sequence[int], decoder_tokens: Sequence[int]) -> F32:
        self._encode(tokens)
        self._loaded.run(self._loaded.library.llama_decode, _fitting(decoder_tokens, self._context))
        return self._loaded.logits(len(decoder_tokens))

    def generate(self, tokens: Sequence[int], limit: int) -> list[int]:
        self._encode(tokens)
        library, found = self._loaded.library, list[int]()
        last = int(library.llama_model_decoder_start_token(self._loaded.model))
        while len(found) < min(limit, self._context):
            self._loaded.run(library.llama_decode, [last], len(found), every=False)
            last = self._loaded.greedy()
            if self._loaded.ends(last):
                break
            found.append(last)
        return found

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._loaded.close()

    def _encode(self, tokens: Sequence[int]) -> None:
        self._loaded.forget()
        self._loaded.run(self._loaded.library.llama_encode, _fitting(tokens, self._context))
