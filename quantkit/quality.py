"""What is asked of the original and of every artefact, and how far their answers part: by logits, or by embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from quantkit import arch, heads, walk, workspace
from quantkit.calibration import corpus
from quantkit.calibration.corpus import Sequences
from quantkit.checks import cloze, divergence, embedding, perplexity, scoring
from quantkit.checks.scoring import Questions, Scores
from quantkit.engines import llama_cpp, llama_cpp_encoder
from quantkit.formats.gguf import layout
from quantkit.job import Job
from quantkit.recipe import Checks
from quantkit.source import text
from quantkit.source.text import Text
from quantkit.values import F32, CheckResult, Snapshot, Speed
from quantkit.version import __version__

CHUNK = 512  # tokens; llama-perplexity's


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A text, and what of it a model is given."""

    text: Text
    given: Sequences
    second: Evaluation | None = None  # another text, unlike the calibration's


@dataclass(frozen=True, slots=True)
class Reference:
    """What the original makes of it: final hidden states (n, length, width), of an encoder-decoder the decoder's."""

    given: Sequences
    hidden: F32
    second: Reference | None = None
    questions: Questions | None = None  # that artefact and original are asked, where it is a decoder


@dataclass(frozen=True, slots=True)
class Found:
    """What the checks of an artefact came to: results, the relative error of every tensor, its speed and its original's."""

    results: tuple[CheckResult, ...]
    errors: Mapping[str, float]
    speed: Speed | None = None
    original: Speed | None = None
    label: str | None = None  # of the original


def kind(snapshot: Snapshot) -> arch.Kind:
    return arch.find(snapshot.config).kind


def ask(job: Job) -> Evaluation | None:
    """The evaluation text, cut; None when nothing is checked. Raises SourceError, UnresolvedError."""
    if job.recipe.checks is None:
        return None
    chunks, other = job.recipe.checks.perplexity.chunks, job.recipe.checks.divergence.second
    texts = [text.fetch(uri, job.work) for uri in (job.recipe.checks.perplexity.text, other) if uri]
    found = [Evaluation(given, cut(job.snapshot, given, chunks=chunks, length=CHUNK)) for given in texts]
    return replace(found[0], second=found[1] if other else None)


def cut(snapshot: Snapshot, given: Text, *, chunks: int, length: int, seed: int | None = None) -> Sequences:
    """A text for this kind of model: see corpus.ask."""
    assert snapshot.tokenizer is not None
    start = int(arch.standard(arch.find(snapshot.config), snapshot.config).get("decoder_start_token_id") or 0)
    return corpus.ask(
        kind(snapshot), given.path, snapshot.tokenizer, chunks=chunks, length=length, decoder_start=start, seed=seed
    )


def make_reference(job: Job, asked: Evaluation) -> Reference:
    """Walk the original over the evaluation text; kept in the build folder and found there again by a later run."""
    second = _reference(job, asked.second.given, "reference-second.npy") if asked.second else None
    questions = None
    if kind(job.snapshot) == "decoder":
        assert job.snapshot.tokenizer is not None
        questions = cloze.ask(asked.given.tokens, job.snapshot.tokenizer, first=CHUNK // 2)
    return replace(_reference(job, asked.given, "reference.npy"), second=second, questions=questions)


def _reference(job: Job, given: Sequences, name: str) -> Reference:
    snapshot = job.snapshot
    path = job.work / name
    tokens = [ids.tobytes().hex() for ids in (given.tokens, given.decoder_tokens) if ids is not None]
    made_from = workspace.key(
        source=layout.source_digest(snapshot), config=snapshot.config, tokens=tokens, quantkit=__version__
    )
    if workspace.recall(path, made_from) is None:
        hidden = walk.walk(
            snapshot.config,
            snapshot.weights,
            given.tokens,
            decoder_sequences=given.decoder_tokens,
            threads=job.threads,
            progress=job.progress,
        )
        with workspace.replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, hidden)
        workspace.remember(path, made_from)
    return Reference(given, np.load(path))


def check(job: Job, path: Path, reference: Reference, gates: Checks) -> list[CheckResult]:
    """The quality checks that this kind of model has."""
    if kind(job.snapshot) == "encoder":
        return [_check_embedding(job, path, reference, gates)]
    second = score(job, path, reference.second) if reference.second else None
    return judge(job, score(job, path, reference), gates, second)


def judge(job: Job, scores: Scores, gates: Checks, second: Scores | None) -> list[CheckResult]:
    """What an artefact's logits say on the evaluation text, held to its gates, and on a second text."""
    return [
        perplexity.check(scores, max_ratio=gates.perplexity.max_ratio),
        divergence.check(scores, max_mean=gates.divergence.max_mean, min_same_top=gates.divergence.min_same_top),
        *([cloze.check(scores, min_ratio=gates.cloze.min_ratio)] if kind(job.snapshot) == "decoder" else []),
        *([divergence.check_second(second)] if second else []),
    ]


def distance(job: Job, path: Path, reference: Reference) -> float:
    """One figure, less is better: mean KL divergence; of an encoder 1 - cosine."""
    if kind(job.snapshot) == "encoder":
        return 1 - float(_check_embedding(job, path, reference, Checks()).values["cosine"])
    return float(score(job, path, reference).kld.mean())


def score(job: Job, path: Path, reference: Reference) -> Scores:
    """The artefact in its engine on the evaluation text, against the reference."""
    tokens, answers = reference.given.tokens, reference.given.decoder_tokens
    compare = partial(
        scoring.score,
        reference_hidden=reference.hidden,
        head=original_head(job),
        engine=llama_cpp.name(),
        questions=reference.questions,
        progress=job.progress,
    )
    if answers is None:
        with closing(llama_cpp.open_runner(path, context=CHUNK, threads=job.threads)) as runner:
            return compare(lambda index: runner.logits(tokens[index].tolist()), tokens, first=CHUNK // 2)
    with closing(llama_cpp_encoder.open_transducer(path, context=CHUNK, threads=job.threads)) as transducer:
        return compare(lambda index: transducer.logits(tokens[index].tolist(), answers[index].tolist()), answers, first=0)


def original_head(job: Job) -> Callable[[F32], F32]:
    """From the reference's hidden states to its logits."""
    return heads.project(job.snapshot.config, job.snapshot.weights, threads=job.threads)


def _check_embedding(job: Job, path: Path, reference: Reference, gates: Checks) -> CheckResult:
    tokens = reference.given.tokens
    with closing(llama_cpp_encoder.open_embedder(path, context=tokens.shape[1], threads=job.threads)) as embedder:
        found = embedding.embed(embedder, tokens, job.progress)
    return check_embedding(job, found, reference, gates, embedder.engine)


def check_embedding(job: Job, found: F32, reference: Reference, gates: Checks, engine: str) -> CheckResult:
    """Embeddings (n, width) of the evaluation text against the original's."""
    return embedding.check(
        found,
        embedding.pool(reference.hidden, job.snapshot.config.get("pooling")),
        chunks=len(reference.given.tokens) // corpus.TEXTS,
        engine=engine,
        min_cosine=gates.embedding.min_cosine,
        min_rank=gates.embedding.min_rank,
    )
