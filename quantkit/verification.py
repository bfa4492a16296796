"""An artefact is reopened, run in its engine, and held to the recipe's gates; nothing about it is taken on trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from quantkit import arch, footprint, walk, workspace
from quantkit.calibration import corpus
from quantkit.calibration.corpus import Corpus
from quantkit.checks import divergence, integrity, latency, perplexity, samples, scoring
from quantkit.codecs import gguf_names
from quantkit.engines import llama_cpp
from quantkit.formats.gguf import layout, writer
from quantkit.manifest import CheckRecord, MemoryRecord, SampleRecord, SpeedRecord, TargetRecord, TensorRecord, Verdict
from quantkit.planning import TargetPlan
from quantkit.recipe import Checks, GgufTarget
from quantkit.report import machine
from quantkit.values import F32, Artefact, CheckResult, Progress, Row, Snapshot, Speed

CHUNK = 512  # tokens; llama-perplexity's
ANSWER_TOKENS = 64
BASELINE = "baseline-F16"
BASELINE_TARGET = GgufTarget(format="gguf", type="F16")


@dataclass(frozen=True, slots=True)
class Reference:
    """What the original says of the evaluation text: its final hidden states (chunks, 512, width)."""

    corpus: Corpus
    hidden: F32


@dataclass(frozen=True, slots=True)
class Baseline:
    """The unquantised model in the same engine: an F16 file written by us."""

    path: Path
    label: str
    answers: tuple[str, ...]


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
    return Reference(cut, np.load(path, mmap_mode="r"))


@contextmanager
def baseline(snapshot: Snapshot, prompts: Sequence[str], work: Path, threads: int, progress: Progress) -> Iterator[Baseline]:
    """The F16 file that speed and answers are compared with, while the block runs."""
    plan = replace(layout.plan(BASELINE_TARGET, "", snapshot, BASELINE), name=BASELINE, file=f"{BASELINE}.gguf")
    artefact = writer.write(plan, BASELINE_TARGET, snapshot, work, importance={}, threads=threads, progress=progress)
    try:
        runner = llama_cpp.open_runner(artefact.path, context=CHUNK, threads=threads)
        try:
            answers = samples.answer(runner, snapshot.tokenizer, prompts, ANSWER_TOKENS)
        finally:
            runner.close()
        yield Baseline(artefact.path, "F16 of the same weights", tuple(answers))
    finally:
        artefact.path.unlink(missing_ok=True)


def verify(
    artefact: Artefact,
    plan: TargetPlan,
    gates: Checks,
    reference: Reference,
    original: Baseline,
    snapshot: Snapshot,
    prompts: Sequence[str],
    threads: int,
    progress: Progress,
) -> TargetRecord:
    """Every check of one artefact, and what it measured."""
    sound, errors = integrity.check(artefact.path, artefact.rows, source_rows(snapshot), progress=progress)
    head = walk.head(snapshot.config, snapshot.weights, threads=threads)
    runner = llama_cpp.open_runner(artefact.path, context=CHUNK, threads=threads)
    try:
        scores = scoring.score(runner, reference.corpus.tokens, reference.hidden, head, progress)
        answers = samples.answer(runner, snapshot.tokenizer, prompts, ANSWER_TOKENS)
        engine = runner.engine
    finally:
        runner.close()
    quick, ours, theirs = latency.check(artefact.path, original.path, gates.latency, threads=threads, progress=progress)
    results = (
        sound,
        perplexity.check(scores, engine, max_ratio=gates.perplexity.max_ratio),
        divergence.check(scores, engine, max_mean=gates.divergence.max_mean, min_same_top=gates.divergence.min_same_top),
        quick,
    )
    asked = zip(prompts, original.answers, answers, strict=True)
    return unverified(artefact, plan, snapshot).model_copy(
        update={
            "verdict": _verdict(results),
            "tensors": _tensors(artefact.rows, errors),
            "checks": [CheckRecord.model_validate(asdict(result)) for result in results],
            "speed": SpeedRecord.model_validate(asdict(ours)),
            "baseline": SpeedRecord.model_validate(asdict(theirs)),
            "baseline_label": original.label,
            "memory": _memory(artefact, snapshot, ours),
            "samples": [SampleRecord(prompt=p, original=before, artefact=after) for p, before, after in asked],
        }
    )


def unverified(artefact: Artefact, plan: TargetPlan, snapshot: Snapshot) -> TargetRecord:
    """What is known of an artefact before any check."""
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
        verdict="unchecked",
        tensors=_tensors(artefact.rows, {}),
        checks=[],
        speed=None,
        baseline=None,
        baseline_label=None,
        memory=_memory(artefact, snapshot, None),
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
    met = {result.verdict for result in results}
    return "fail" if "fail" in met else "unresolved" if "unresolved" in met else "pass"


def _tensors(rows: Sequence[Row], errors: Mapping[str, float]) -> list[TensorRecord]:
    return [TensorRecord(**asdict(row) | {"shape": list(row.shape), "relative_error": errors.get(row.name)}) for row in rows]


def _memory(artefact: Artefact, snapshot: Snapshot, speed: Speed | None) -> list[MemoryRecord]:
    """Predicted memory at the contexts that a reader asks about, the measured one among them."""
    contexts = footprint.standard_contexts(int(snapshot.config["max_position_embeddings"]))
    isa = machine.instruction_sets()
    predicted = footprint.memory(artefact.nbytes, artefact.rows, snapshot.config, contexts, instruction_sets=isa)
    measured = {latency.CONTEXT: speed.peak_rss_bytes} if speed else {}
    return [MemoryRecord(**asdict(item), total=item.total, measured=measured.get(item.context)) for item in predicted]
