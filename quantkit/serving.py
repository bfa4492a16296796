"""ONNX folders: made, shown to be the model, run in onnxruntime, and held to the recipe's gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from quantkit import baseline, costs, likeness, making, memory, quality, workspace
from quantkit.checks import carried, embedding, latency, reopened, scoring
from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import Verdict
from quantkit.codecs import gguf_config
from quantkit.engines import (
    onnxruntime_decoder,
    onnxruntime_encoder,
    onnxruntime_probe,
    onnxruntime_speed,
    onnxruntime_transducer,
)
from quantkit.errors import SourceError
from quantkit.formats.gguf import layout as gguf_layout
from quantkit.formats.onnx import assembly, dynamic, graphs, layout, reader, writer
from quantkit.formats.onnx.graph import Graph
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.quality import CHUNK, Found, Reference
from quantkit.recipe import Checks, Latency
from quantkit.report import machine
from quantkit.spill import Codes
from quantkit.targets import OnnxRule, OnnxTarget
from quantkit.values import F32, Artefact, CheckResult, Importance, Row, Snapshot, Speed
from quantkit.version import __version__

FLOAT = OnnxTarget(format="onnx", rules=(OnnxRule(match="*", skip=True),))


def make(job: Job, plan: TargetPlan, observed: Mapping[str, Importance], codes: Codes | None) -> Artefact:
    """The planned folder, or the same one of an earlier run."""
    weighed = observed if plan.onnx.imatrix else {}
    solved = {name: codes.record(name).codes for row in plan.rows for name in row.sources if codes and codes.holds(name)}
    made_from = workspace.key(
        rows=plan.rows,
        source=gguf_layout.source_digest(job.snapshot),
        importance=making.digest_of(weighed),
        codes=solved,
        quantkit=__version__,
    )

    def write() -> Artefact:
        return writer.write(
            plan,
            job.snapshot,
            job.work,
            importance=weighed,
            solved=codes.solved if codes else None,
            threads=job.threads,
            progress=job.progress,
            made=job.graphs(),
        )

    return making.folder(job, plan, job.work / f"{plan.name}.made", made_from, write)


def check(job: Job, plan: TargetPlan, artefact: Artefact, reference: Reference) -> Found:
    """Every check of one folder."""
    gates = job.recipe.gates(plan.target)
    assert gates is not None
    laps = costs.Laps()
    made = job.graphs()
    with _float_graph(job, plan.onnx, made) as original:
        what = "the whole model" if original.counterpart is None else f"its first {baseline.CUT_LAYERS} layers"
        same = likeness.check(original.snapshot, original.path, threads=job.threads, what=what)
        results = laps.end(same)
        memory.release()  # transformers' model
        sound, errors = _integrity(job, plan, artefact, made)
        results += laps.end(sound)
        if "fail" in (same.verdict, sound.verdict):  # of another model, or not what was planned: no figure would mean a thing
            return Found(results, errors)
        results += laps.end(*_quality(job, artefact.path, reference, gates))
        memory.release()  # its session, before child processes take its place
        quick, ours, theirs = _time(job, original, original.counterpart or artefact.path, gates.latency)
        results += laps.end(quick)
    results += laps.end(_isa(plan))
    return Found(results, errors, ours, theirs, original.label)


def distance(job: Job, path: Path, reference: Reference) -> float:
    """One figure, less is better: mean KL divergence; of an encoder 1 - cosine."""
    if quality.kind(job.snapshot) == "encoder":
        (found,) = _quality(job, path, reference, Checks())
        return 1 - float(found.values["cosine"])
    score = _score if reference.given.decoder_tokens is None else _score_answers
    return float(score(job, path, reference).kld.mean())


def _isa(plan: TargetPlan) -> CheckResult:
    """What this CPU has and what the file takes for granted."""
    whole, reduced = onnxruntime_probe.saturates(127), onnxruntime_probe.saturates(dynamic.LOWEST)
    products = any(row.type.startswith("INT7") for row in plan.rows)
    said = f"measured on {_sets()}; signed products of 8 bits {'saturate' if whole else 'do not saturate'} here"
    if products:
        said += "; this file's weights are of 7 bits, " + ("which saturate too" if reduced else "which do not on any CPU")
    else:
        said += "; this file multiplies in blocks, which saturate nowhere"
    values = {"saturates_8_bits": int(whole), "saturates_7_bits": int(reduced)}
    verdict: Verdict = "fail" if products and reduced else "report"
    return CheckResult("isa", verdict, said, values, {}, onnxruntime_decoder.name())


def _quality(job: Job, path: Path, reference: Reference, gates: Checks) -> list[CheckResult]:
    if quality.kind(job.snapshot) == "encoder":
        tokens = reference.given.tokens
        with closing(onnxruntime_encoder.open_embedder(path, threads=job.threads)) as embedder:
            found = embedding.embed(embedder, tokens, job.progress)
        return [quality.check_embedding(job, found, reference, gates, embedder.engine)]
    score = _score if reference.given.decoder_tokens is None else _score_answers
    second = score(job, path, reference.second) if reference.second else None
    return quality.judge(job, score(job, path, reference), gates, second)


@dataclass(frozen=True, slots=True)
class _Float:
    """The float32 graph: of the whole model, or where that does not fit of its first layers, beside which `counterpart` has
    those layers as the artefact's type."""

    path: Path
    snapshot: Snapshot
    label: str
    counterpart: Path | None


@contextmanager
def _float_graph(job: Job, target: OnnxTarget, made: Sequence[Graph]) -> Iterator[_Float]:
    with workspace.temporary(job.work) as place:
        if baseline.float_graph_fits(job.snapshot, job.work):
            path = _write(job, FLOAT, job.snapshot, place / "float", made)
            yield _Float(path, job.snapshot, "float32 graph of the same weights", None)
        else:
            cut = baseline.first_layers(job.snapshot)
            few = graphs.build(cut)
            path, beside = (_write(job, each, cut, place / name, few) for each, name in ((FLOAT, "float"), (target, "cut")))
            label = f"float32 graph of the first {baseline.CUT_LAYERS} layers, beside those layers as this type"
            yield _Float(path, cut, label, beside)


def _write(job: Job, target: OnnxTarget, snapshot: Snapshot, place: Path, made: Sequence[Graph]) -> Path:
    place.mkdir()
    plan = layout.plan(target, "", snapshot, "original", made)
    progress = job.labelled("(baseline)").progress
    artefact = writer.write(
        plan, snapshot, place, importance={}, solved=None, threads=job.threads, progress=progress, made=made
    )
    return artefact.path


def _integrity(
    job: Job, plan: TargetPlan, artefact: Artefact, made: Sequence[Graph]
) -> tuple[CheckResult, Mapping[str, float]]:
    deferred = {name: each for graph in reversed(made) for name, each in graph.deferred.items()}
    turned = {row.name for row in plan.rows if row.type != "F32"} & set().union(
        *(assembly.transposed(graph.model) for graph in made)
    )
    kept: dict[str, F32] = {}

    def source_rows(row: Row, start: int, stop: int) -> F32:
        if row.name not in deferred:  # of the format's own: finite is all it can be asked to be
            return written.read(row.name, start, stop)
        if row.name not in kept:
            kept.clear()
            values = deferred[row.name].make()
            kept[row.name] = values.T if row.name in turned else values
        return kept[row.name][start:stop]

    place = job.work / plan.file.partition("/")[0]
    beside = carried.faults(place, job.snapshot, writer.documents(plan, job.snapshot, made))
    try:
        written = reader.read([file.path for file in artefact.files[: len(layout.files(plan.onnx, made))]], plan.rows)
        return reopened.check(
            written, plan.rows, source_rows, lambda _: np.zeros(0, np.uint8), {}, beside, progress=job.progress
        )
    except SourceError as error:
        return CheckResult("integrity", "fail", "; ".join([str(error), *beside]), {}, {}, "quantkit"), {}


def _score(job: Job, path: Path, reference: Reference) -> Scores:
    tokens = reference.given.tokens
    with closing(onnxruntime_decoder.open_runner(path, context=tokens.shape[1], threads=job.threads)) as runner:
        return scoring.score(
            lambda index: runner.logits(tokens[index].tolist()),
            tokens,
            reference.hidden,
            quality.original_head(job),
            first=tokens.shape[1] // 2,
            engine=runner.engine,
            questions=reference.questions,
            progress=job.progress,
        )


def _score_answers(job: Job, path: Path, reference: Reference) -> Scores:
    tokens, answers = reference.given.tokens, reference.given.decoder_tokens
    assert answers is not None
    with closing(onnxruntime_transducer.open_transducer(path, context=CHUNK, threads=job.threads)) as transducer:
        return scoring.score(
            lambda index: transducer.logits(tokens[index].tolist(), answers[index].tolist()),
            answers,
            reference.hidden,
            quality.original_head(job),
            first=0,
            engine=transducer.engine,
            progress=job.progress,
        )


def _time(job: Job, original: _Float, timed: Path, pace: Latency) -> tuple[CheckResult, Speed, Speed]:
    kind = quality.kind(job.snapshot)
    prompt = min(pace.prompt, gguf_config.context_length(job.snapshot.config))
    measure = partial(onnxruntime_speed.measure, kind=kind, threads=job.threads, prompt=prompt, decode=pace.decode)
    result, ours, theirs = latency.check(
        measure,
        timed,
        original.path,
        rounds=pace.rounds,
        min_decode_ratio=pace.min_decode_ratio,
        min_prefill_ratio=pace.min_prefill_ratio,
        progress=job.progress,
    )
    slower = ours.prefill_tokens_per_s < theirs.prefill_tokens_per_s
    said = f"{result.summary}; of {original.label}" + (
        f"; prefill is slower than float32 on this CPU ({_sets()})" if slower else ""
    )
    return replace(result, summary=said), ours, theirs


def _sets() -> str:
    return ", ".join(machine.instruction_sets()) or "no instruction sets known"
