"""Frozen values and Protocols that the stages share. No stage imports another: they meet in pipeline.py through these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

JOINED = " + "
"""Between the names of the tensors that a row joins."""

FLOATS = frozenset({"F32", "F16", "BF16"})
"""Types that hold weights as trained."""

Progress = Callable[[str, float, float], None]
"""progress(what, done, total): called by long work with its step's name and position; drawing it is the caller's."""


class Encode(Protocol):
    """rows: float32 (n, width), width a multiple of the type's block. importance: float32 (width,) >= 0, E[x^2] of the input
    that each column meets; mean: float32 (width,), its E[x], given with importance only. Returns uint8 (n, width // block *
    block_bytes). Raises WeightError for weights that the type cannot hold."""

    def __call__(self, rows: F32, importance: F32 | None, mean: F32 | None = None) -> U8: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """A GGUF tensor type: arrays of rows to bytes (`Encode`) and back, float32 (n, width). One file in codecs/gguf/ ends in
    one of these."""

    name: str
    ggml_type: int
    block: int
    block_bytes: int
    encode: Encode
    decode: Callable[[U8], F32]
    exact: Callable[[F32], U8 | None] | None = None  # rows that lie on the type's grid as they are; None for others

    def row_bytes(self, width: int) -> int:
        return width // self.block * self.block_bytes


@dataclass(frozen=True, slots=True)
class Importance:
    """What calibration saw of a matrix's input, column by column: float32 (width,), or (matrices, width) for each of a stack.

    squares: E[x^2]. means: E[x], or None where nobody measured it. counts: input rows seen, int64 (matrices,); one for all.
    """

    squares: F32
    means: F32 | None
    counts: NDArray[np.int64]

    def of(self, matrix: int) -> Importance:
        """That of one matrix of a stack: its own, or what all share."""
        if self.squares.ndim == 1:
            return self
        at = matrix if len(self.squares) > 1 else 0
        means = None if self.means is None else self.means[at]
        return Importance(self.squares[at], means, self.counts[at : at + 1])


def stacked(parts: Sequence[Importance]) -> Importance:
    """That of a stack of matrices, from each one's."""
    means = [part.means for part in parts if part.means is not None]
    whole = np.stack(means) if len(means) == len(parts) else None
    return Importance(np.stack([part.squares for part in parts]), whole, np.concatenate([part.counts for part in parts]))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as a checkpoint declares it. `shape` is the checkpoint's (rows first); `dtype` is its stored type."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Inputs(Protocol):
    """What a matrix meets, micro-batch by micro-batch, each float32 (tokens, width); a list of them is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> F32: ...

    def __iter__(self) -> Iterator[F32]: ...


class Weights(Protocol):
    """A checkpoint's tensors under their Hugging Face names, read lazily."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        """A tensor as float32 in its shape, or its rows [start, stop), leading axes merged, as (stop - start, width); of a
        vector (stop - start,). Owned by the caller."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A checkpoint's tokenizer: the parsed tokenizer.json and tokenizer_config.json, and the chat template in force."""

    definition: Mapping[str, Any]
    config: Mapping[str, Any]
    chat_template: str | None


@dataclass(frozen=True, slots=True)
class Licence:
    """What the source says of its licence; `files` maps LICENSE, NOTICE ... to their text and goes with every artefact."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint, pinned. `describe` makes it from headers alone (digests empty); `fetch` puts the weights on disk."""

    uri: str
    kind: Literal["hub", "folder", "gguf"]
    name: str | None  # the model's own name; never a folder's name, so that bytes do not depend on where it lies
    repo: str | None
    commit: str | None
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    weights: Weights
    tokenizer: Tokenizer | None
    licence: Licence
    download_bytes: int = 0  # what `fetch` would still download
    reconstructed: bool = False  # no weights behind it: shapes come from config.json through transformers' model
    digests: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256, of every weight file; after fetch

    def parameters(self) -> int:
        return sum(math.prod(info.shape) for info in self.weights.infos.values())

    def quantised(self) -> str | None:
        """The types of a checkpoint that is itself quantised, "Q4_1, Q6_K"; None for weights as trained."""
        return ", ".join(sorted({info.dtype for info in self.weights.infos.values()} - FLOATS)) or None


@dataclass(frozen=True, slots=True)
class Row:
    """One planned tensor of an artefact and why it gets its type."""

    name: str  # in the artefact
    source: str | None  # in the checkpoint, several joined by JOINED; None for a tensor that the format adds
    shape: tuple[int, ...]  # rows first
    source_dtype: str
    type: str
    wanted: str  # what the mixture asked for; differs from `type` when the shape forbids it
    reason: str
    nbytes: int

    @property
    def sources(self) -> tuple[str, ...]:
        """The checkpoint's tensors that it is made of, one below the other."""
        return tuple(self.source.split(JOINED)) if self.source else ()

    @property
    def fallback(self) -> bool:
        return self.type != self.wanted


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file under its final name."""

    path: Path
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artefact:
    """What a format wrote into the workspace: one file, or several where it is split; `path` is the one to open."""

    target: str  # the target's name in the recipe, e.g. "gguf-Q4_K_M"
    files: tuple[Written, ...]
    rows: tuple[Row, ...]
    seconds: float
    peak_rss_bytes: int

    @property
    def path(self) -> Path:
        return self.files[0].path

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Of the file to open."""
        return self.files[0].sha256


class Runner(Protocol):
    """An artefact loaded in an engine. `engine` names it with its version: every figure carries it."""

    @property
    def engine(self) -> str: ...

    def logits(self, tokens: Sequence[int]) -> F32:
        """Logits after each of `tokens`, in one forward from an empty cache: (len(tokens), vocabulary)."""
        ...

    def generate(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Greedy continuation, at most `limit` tokens, ending before an end-of-generation token."""
        ...

    def close(self) -> None: ...


class Embedder(Protocol):
    """An artefact of an encoder, loaded in an engine."""

    @property
    def engine(self) -> str: ...

    def embed(self, tokens: Sequence[int]) -> F32:
        """The embedding of one text's tokens, pooled as the file says: (width,)."""
        ...

    def close(self) -> None: ...


class Transducer(Protocol):
    """An artefact of an encoder-decoder, loaded in an engine."""

    @property
    def engine(self) -> str: ...

    def logits(self, tokens: Sequence[int], decoder_tokens: Sequence[int]) -> F32:
        """Logits after each of `decoder_tokens`, given a text's `tokens`: (len(decoder_tokens), vocabulary)."""
        ...

    def generate(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Greedy answer to a text's tokens, at most `limit` tokens, ending before an end-of-generation token."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Speed:
    """One file on this machine, from a child process of its own, or the medians over several."""

    engine: str
    threads: int
    prompt_tokens: int
    decode_tokens: int
    load_seconds: float
    first_token_seconds: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None  # None: an encoder decodes nothing
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident bytes of a process that ran a model with `context` tokens: before it was loaded, and at the peak. seconds: from
    the first on, start-up not counted."""

    engine: str
    context: int
    before: int
    peak: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of one artefact. `report` measured without a gate; `unresolved` could not decide (exit code 4)."""

    check: str
    verdict: Literal["pass", "fail", "report", "unresolved"]
    summary: str  # one line a person reads
    values: Mapping[str, float | int | str]
    limits: Mapping[str, float]
    engine: str
    chunk_means: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # what a later artefact is paired with
    seconds: float = 0.0  # as `costs.Laps` counts them
