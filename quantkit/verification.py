"""An artefact is reopened, run in its engine, and held to the recipe's gates; nothing about it is taken on trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from quantkit import arch, baseline, footprint, walk, workspace
from quantkit.baseline import Baseline
from quantkit.calibration import corpus
from quantkit.calibration.corpus import Corpus
from quantkit.checks import divergence, integrity, latency, perplexity, scoring
from quantkit.checks.scoring import Scores
from quantkit.codecs import gguf_names
from quantkit.engines import llama_cpp
from quantkit.formats.gguf import layout
from quantkit.manifest import CheckRecord, MemoryRecord, SampleRecord, SpeedRecord, TargetRecord, TensorRecord, Verdict
from quantkit.planning import TargetPlan
from quantkit.recipe import Checks, GgufTarget, Latency
from quantkit.report import machine
from quantkit.values import F32, Artefact, CheckResult, Progress, Row, Snapshot, Speed

CHUNK = 512  # tokens; llama-perplexity's


@dataclass(frozen=True, slots=True)
class Reference:
    """What the original says of the evaluation text: its final hidden states (chunks, 512, width)."""

    corpus: Corpus
    hidden: F32


def make_reference(
    snapshot: Snapshot, text: Path, name: str, gates: Checks, work: Path, threads: int, progress: Progress
) -> Reference:
    """Walk the original over the evaluation text; kept in `work` and found there again by a later run."""
    assert snapshot.tokenizer is not None
    cut = corpus.cut(text, snapshot.tokenizer, chunks=gates.perplexity.chunks, length=CHUNK, name=name)
    path = work / "reference.npy"
    made_from = workspace.key(source=layout.source_digest(snapshot), tokens=cut.tokens.tobytes().hex())
    if workspace.recall(path, made_from) is None:
        hidden = walk.walk(snapshot.config, snapshot.weights, cut.tokens, threads=threads, progress=progress)
        with workspace.replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, hidden)
        workspace.remember(path, made_from)
    return Reference(cut, np.load(path))


def verify(
    artefact: Artefact,
    plan: TargetPlan,
    target: GgufTarget,
    gates: Checks,
    reference: Reference,
    original: Baseline,
    snapshot: Snapshot,
    prompts: Sequence[str],
    threads: int,
    progress: Progress,
) -> TargetRecord:
    """Every check of one artefact, and what it measured."""

    def named(what: str, done: float, total: float) -> None:
        progress(f"{what} {plan.name}", done, total)

    sound, errors = integrity.check(artefact.path, artefact.rows, source_rows(snapshot), progress=named)
    if sound.verdict == "fail":  # no engine is shown a file that is not what was planned
        return _recorded(artefact, plan, snapshot, (sound,), errors)
    scores = _score(artefact.path, reference, snapshot, threads, named)
    quick, ours, theirs = _time(artefact.path, target, gates.latency, original, snapshot, threads, named)
    results = (
        sound,
        perplexity.check(scores, max_ratio=gates.perplexity.max_ratio),
        divergence.check(scores, max_mean=gates.divergence.max_mean, min_same_top=gates.divergence.min_same_top),
        quick,
    )
    answers = baseline.answers(artefact.path, snapshot, prompts, threads)
    asked = zip(prompts, original.answers, answers, strict=True)
    measured = {} if original.cut else {_context(gates.latency): ours.peak_rss_bytes}
    return _recorded(artefact, plan, snapshot, results, errors).model_copy(
        update={
            "speed": SpeedRecord.model_validate(asdict(ours)),
            "baseline": SpeedRecord.model_validate(asdict(theirs)),
            "baseline_label": original.label,
            "memory": _memory(artefact, snapshot, measured),
            "samples": [SampleRecord(prompt=p, original=before, artefact=after) for p, before, after in asked],
        }
    )


def _score(path: Path, reference: Reference, snapshot: Snapshot, threads: int, progress: Progress) -> Scores:
    """The artefact in its engine on the evaluation text, against the reference."""
    head = walk.head(snapshot.config, snapshot.weights, threads=threads)
    runner = llama_cpp.open_runner(path, context=CHUNK, threads=threads)
    try:
        return scoring.score(runner, reference.corpus.tokens, reference.hidden, head, progress)
    finally:
        runner.close()


def _time(
    path: Path, target: GgufTarget, pace: Latency, original: Baseline, snapshot: Snapshot, threads: int, progress: Progress
) -> tuple[CheckResult, Speed, Speed]:
    """The latency check, and the medians of the artefact and of the baseline."""
    measure = partial(llama_cpp.measure, threads=threads, prompt=pace.prompt, decode=pace.decode, context=_context(pace))
    gate = pace.min_decode_ratio
    with baseline.counterpart(path, target, original, snapshot, path.parent, threads, progress) as timed:
        return latency.check(measure, timed, original.path, rounds=pace.rounds, min_decode_ratio=gate, progress=progress)


def unverified(artefact: Artefact, plan: TargetPlan, snapshot: Snapshot) -> TargetRecord:
    """The record of an artefact that the recipe does not want checked."""
    return _recorded(artefact, plan, snapshot, (), {})


def _recorded(
    artefact: Artefact, plan: TargetPlan, snapshot: Snapshot, results: Sequence[CheckResult], errors: Mapping[str, float]
) -> TargetRecord:
    return TargetRecord(
        name=artefact.target,
        format=plan.format,
        type=plan.type,
        file=artefact.path.name,
        nbytes=artefact.nbytes,
        sha256=artefact.sha256,
        bits_per_weight=plan.bits_per_weight,
        seconds=artefact.seconds,
        peak_rss_bytes=artefact.peak_rss_bytes,
        verdict=_verdict(results),
        tensors=_tensors(artefact.rows, errors),
        checks=[CheckRecord.model_validate(asdict(result)) for result in results],
        speed=None,
        baseline=None,
        baseline_label=None,
        memory=_memory(artefact, snapshot, {}),
        samples=[],
    )


def source_rows(snapshot: Snapshot) -> Callable[[Row, int, int], F32]:
    """The original's rows [start, stop) of a planned tensor, in the artefact's row order, float32 (stop - start, width)."""
    architecture = arch.find(snapshot.config)
    extra = layout.extra_tensors(snapshot)

    def rows(row: Row, start: int, stop: int) -> F32:
        if row.source is None:
            return extra[row.name].reshape(-1, row.shape[-1])[start:stop]
        heads = gguf_names.heads(architecture, row.source, snapshot.config)
        if not heads and len(row.shape) > 1:
            return snapshot.weights.read(row.source, start, stop)
        whole = snapshot.weights.read(row.source)
        ordered = gguf_names.permute(whole, heads) if heads else whole
        return ordered.reshape(-1, row.shape[-1])[start:stop]

    return rows


def _verdict(results: Sequence[CheckResult]) -> Verdict:
    if not results:
        return "unchecked"
    met = {result.verdict for result in results}
    return "fail" if "fail" in met else "unresolved" if "unresolved" in met else "pass"


def _tensors(rows: Sequence[Row], errors: Mapping[str, float]) -> list[TensorRecord]:
    return [TensorRecord(**asdict(row) | {"shape": list(row.shape), "relative_error": errors.get(row.name)}) for row in rows]


def _context(pace: Latency) -> int:
    """The context that holds the latency measurement, in llama.cpp's steps of 256."""
    return -(-(pace.prompt + pace.decode) // 256) * 256


def _memory(artefact: Artefact, snapshot: Snapshot, measured: Mapping[int, int]) -> list[MemoryRecord]:
    """Predicted memory at the contexts that a reader asks about and at the measured ones (context -> peak RSS)."""
    contexts = {*footprint.standard_contexts(int(snapshot.config["max_position_embeddings"])), *measured}
    isa = machine.instruction_sets()
    predicted = footprint.memory(artefact.nbytes, artefact.rows, snapshot.config, sorted(contexts), instruction_sets=isa)
    return [MemoryRecord(**asdict(item), total=item.total, measured=measured.get(item.context)) for item in predicted]
