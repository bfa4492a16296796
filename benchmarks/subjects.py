"""A model with what it says of texts, walked once and kept, and how far a file of it is from that."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import open_model
from numpy.typing import NDArray

from quantkit import heads, source, walk, workspace
from quantkit.calibration import corpus, importance
from quantkit.calibration.corpus import Sequences
from quantkit.checks import scoring
from quantkit.checks.scoring import Scores
from quantkit.engines import llama_cpp, torch_blocks
from quantkit.formats.gguf import layout
from quantkit.progress import silent
from quantkit.source import text as texts
from quantkit.values import F32, Importance, Snapshot

CHUNKS = 16
CALIBRATION = 64  # sequences of 512 tokens


@dataclass(frozen=True, slots=True)
class Said:
    """A text's chunks (CHUNKS, 512), and the model's final hidden states over them."""

    tokens: NDArray[np.int32]
    hidden: F32


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, what it says of the evaluation text and of a second one, and the importance of its columns under GGUF names."""

    snapshot: Snapshot
    first: Said
    second: Said
    head: Callable[[F32], F32]
    importance: Mapping[str, Importance]


def subject(model: str, text: texts.Text, second: texts.Text, calibration: texts.Text, threads: int, work: Path) -> Subject:
    """The walks are kept in `work`, by what they depend on."""
    snapshot = open_model(model, work)
    assert snapshot.tokenizer is not None
    config, weights, tokenizer = snapshot.config, snapshot.weights, snapshot.tokenizer

    def kept(name: str, tokens: NDArray[np.int32], make: Callable[[], Any]) -> Any:
        made_from = workspace.key(model=model, digests=snapshot.digests, tokens=tokens.tobytes().hex())
        path = work / f"{model}-{name}-{made_from[:12]}.pickle"
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())

    def said(of: texts.Text) -> Said:
        tokens = corpus.cut(of.path, tokenizer, chunks=CHUNKS, length=512)
        return Said(tokens, kept("hidden", tokens, lambda: walk.walk(config, weights, tokens, threads=threads)))

    given = corpus.cut(calibration.path, tokenizer, chunks=CALIBRATION, length=512)
    squares = kept("importance", given, lambda: weigh(snapshot, calibration.path, CALIBRATION, threads))
    head = heads.project(config, weights, threads=threads)
    return Subject(snapshot, said(text), said(second), head, layout.importance(snapshot, squares))


def weigh(snapshot: Snapshot, calibration: Path, chunks: int, threads: int) -> Mapping[str, Importance]:
    """What the columns of every matrix meet on so many sequences of a text."""
    assert snapshot.tokenizer is not None
    tokens = corpus.cut(calibration, snapshot.tokenizer, chunks=chunks, length=512)
    return importance.measure(snapshot.config, snapshot.weights, Sequences(tokens), threads=threads, progress=silent)


def score(path: Path, given: Subject, said: Said, threads: int) -> Scores:
    """A file in llama.cpp."""
    with closing(llama_cpp.open_runner(path, context=512, threads=threads)) as runner:
        return _score(lambda index: runner.logits(said.tokens[index].tolist()), given, said, runner.engine)


def score_in_torch(path: Path, given: Subject, said: Said, threads: int) -> Scores:
    """The same file, dequantised block by block, activations in float32."""
    weights = source.describe(str(path)).weights
    with closing(weights):
        logits = torch_blocks.logits(given.snapshot.config, weights, said.tokens, threads=threads)
        return _score(logits, given, said, torch_blocks.name())


def _score(logits: Callable[[int], F32], given: Subject, said: Said, engine: str) -> Scores:
    return scoring.score(logits, said.tokens, said.hidden, given.head, first=256, engine=engine)
