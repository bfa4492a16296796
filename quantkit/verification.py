"""An artefact is reopened, run in its engine, and held to the recipe's gates; nothing about it is taken on trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from quantkit import arch, baseline, costs, footprint, memory, quality, reopening, requirements, sensitivity, serving, solved
from quantkit.baseline import Baseline
from quantkit.checks import integrity, latency, tokenizer
from quantkit.codecs import gguf_config, gguf_tensors, gguf_vocab
from quantkit.codecs.gguf_kv import KeyValue
from quantkit.engines import llama_cpp, llama_cpp_speed
from quantkit.formats.gguf import layout, splitting
from quantkit.job import Job
from quantkit.manifest import (
    CheckRecord,
    FileRecord,
    PeerRecord,
    SampleRecord,
    SpeedRecord,
    TargetRecord,
    TensorRecord,
    Verdict,
)
from quantkit.planning import TargetPlan
from quantkit.quality import Evaluation, Found, Reference
from quantkit.recipe import Latency
from quantkit.spill import Codes
from quantkit.values import F32, Artefact, CheckResult, Importance, Row, Snapshot, Speed


@dataclass(frozen=True, slots=True)
class Results:
    """text: name -> sha256 of the evaluation text, empty when nothing was checked. peers: others' files of the same types."""

    text: Mapping[str, str]
    targets: tuple[TargetRecord, ...]
    peers: tuple[PeerRecord, ...] = ()


def prepare(job: Job) -> Evaluation | None:
    """What will be asked; None when nothing is checked. What cannot be asked is found here, before anything is made.

    Raises SourceError, UnresolvedError for the text, InputError for a prompt.
    """
    if job.recipe.checks is not None:
        baseline.prompts(job)
    return quality.ask(job)


def verify_all(
    job: Job,
    plans: Sequence[TargetPlan],
    artefacts: Sequence[Artefact],
    asked: Evaluation | None,
    codes: Mapping[str, Codes],
    observed: Mapping[str, Importance],
) -> Results:
    """The record of every artefact: checked against the original, unless there is nothing to ask."""
    pairs = tuple(zip(plans, artefacts, strict=True))
    if asked is None:
        return Results({}, tuple(_recorded(job, plan, artefact, (), {}) for plan, artefact in pairs))
    reference = quality.make_reference(job, asked)
    records = {}
    for plan, artefact in pairs:
        here = job.labelled(plan.name)
        if plan.target.format == "gguf":
            continue
        if plan.target.format == "gptq":
            found = reopening.check(here, plan, artefact, reference, codes[plan.name])
        else:
            found = serving.check(here, plan, artefact, reference)
            spared = _spared(here, plan, found, observed, codes.get(plan.name))
            if spared is not None:
                plan, artefact = spared
                found = serving.check(here, plan, artefact, reference)
        record = _recorded(job, plan, artefact, found.results, found.errors)
        if found.speed is not None and found.original is not None:
            speeds = [SpeedRecord.model_validate(asdict(speed)) for speed in (found.speed, found.original)]
            said = {"speed": speeds[0], "baseline": speeds[1], "baseline_label": found.label}
            record = record.model_copy(update=said)
        if all(result.verdict != "fail" or result.check != "integrity" for result in found.results):
            record = record.model_copy(update={"memory": requirements.records(here, plan, artefact, run=True)})
        records[plan.name] = record
        memory.release()
    left = [(plan, artefact) for plan, artefact in pairs if plan.name not in records]
    if left:
        with baseline.made(job) as original:
            for plan, artefact in left:
                records[plan.name] = verify(job.labelled(plan.name), plan, artefact, reference, original)
                memory.release()
    for plan, _ in pairs:
        if plan.name in codes and plan.target.format != "gptq":
            account = CheckRecord.model_validate(asdict(solved.account(plan, codes[plan.name])))
            record = records[plan.name]
            records[plan.name] = record.model_copy(update={"checks": [*record.checks, account]})
    texts = {each.text.name: each.text.sha256 for each in (asked, asked.second) if each is not None}
    return Results(texts, tuple(records[plan.name] for plan in plans))


def _spared(
    job: Job, plan: TargetPlan, found: Found, observed: Mapping[str, Importance], codes: Codes | None
) -> tuple[TargetPlan, Artefact] | None:
    """The ONNX artefact made once more with what costs most in float32, where a gate failed and the recipe lets it."""
    failed = {result.check for result in found.results if result.verdict == "fail"} & {"perplexity", "divergence", "embedding"}
    if not failed or not plan.onnx.spare or (wider := sensitivity.spare(job, plan, observed, codes)) is None:
        return None
    return wider, serving.make(job, wider, observed, codes)


def verify(job: Job, plan: TargetPlan, artefact: Artefact, reference: Reference, original: Baseline) -> TargetRecord:
    """Every check of one artefact, and what it measured."""
    gates = job.recipe.gates(plan.target)
    assert gates is not None
    laps = costs.Laps()
    sound, errors = integrity.check(
        [file.path for file in artefact.files],
        artefact.rows,
        source_rows(job.snapshot),
        _metadata(job, plan, artefact),
        progress=job.progress,
    )
    results = laps.end(sound)
    if sound.verdict == "fail":  # no engine is shown a file that is not what was planned
        return _recorded(job, plan, artefact, results, errors)
    words = _tokenize(job, plan, artefact.path)
    results += laps.end(words)
    if words.verdict == "fail":  # every text would be another one
        return _recorded(job, plan, artefact, results, errors)
    results += laps.end(*quality.check(job, artefact.path, reference, gates))
    quick, timed, unquantised = _time(job, plan, artefact.path, gates.latency, original)
    results += laps.end(quick)
    answers = baseline.answers(job, artefact.path)
    asked = zip(baseline.asked(job), original.answers, answers, strict=True)
    return _recorded(job, plan, artefact, results, errors).model_copy(
        update={
            "speed": SpeedRecord.model_validate(asdict(timed)),
            "baseline": SpeedRecord.model_validate(asdict(unquantised)) if unquantised else None,
            "baseline_label": original.label,
            "memory": requirements.records(job, plan, artefact, run=True),
            "samples": [SampleRecord(prompt=p, original=before, artefact=after) for p, before, after in asked],
        }
    )


def _metadata(job: Job, plan: TargetPlan, artefact: Artefact) -> list[list[KeyValue]]:
    """What each of the artefact's files is to say beside its tensors."""
    pairs = layout.metadata(plan.gguf, plan.digest, job.snapshot)
    return splitting.said(pairs, len(artefact.files), len(artefact.rows), arch.find(job.snapshot.config).gguf)


def _tokenize(job: Job, plan: TargetPlan, path: Path) -> CheckResult:
    """The file's vocabulary in its engine against the checkpoint's tokenizer; a recipe that names another pre-tokenizer
    takes the differences upon itself.
    """
    ours, pre = job.snapshot.tokenizer, plan.gguf.pre
    assert ours is not None
    known = gguf_vocab.deviations(ours, pre)
    found = tokenizer.check(ours, partial(llama_cpp.open_vocabulary, path), known=known)
    return replace(found, verdict="report") if pre and found.verdict == "fail" else found


def _time(job: Job, plan: TargetPlan, path: Path, pace: Latency, original: Baseline) -> tuple[CheckResult, Speed, Speed | None]:
    """The latency check, the artefact's own speed, and the unquantised model's unless only a cut of it was timed."""
    measure = partial(
        llama_cpp_speed.measure,
        kind=quality.kind(job.snapshot),
        threads=job.threads,
        prompt=min(pace.prompt, gguf_config.context_length(job.snapshot.config)),
        decode=pace.decode,
        context=footprint.padded(pace.prompt + pace.decode),
    )
    with baseline.counterpart(job, plan.gguf, path, original) as timed:
        result, ours, theirs = latency.check(
            measure,
            timed,
            original.path,
            rounds=pace.rounds,
            min_decode_ratio=pace.min_decode_ratio,
            min_prefill_ratio=pace.min_prefill_ratio,
            progress=job.progress,
        )
    if not original.cut:
        return result, ours, theirs
    return replace(result, summary=f"{result.summary}; of {original.label}"), measure(path), None


def _recorded(
    job: Job, plan: TargetPlan, artefact: Artefact, results: Sequence[CheckResult], errors: Mapping[str, float]
) -> TargetRecord:
    return TargetRecord(
        name=plan.name,
        format=plan.target.format,
        type=plan.target.label,
        codes="gptq" if plan.solved else "search",
        mark=plan.mark,
        files=[
            FileRecord(name=str(file.path.relative_to(job.work)), nbytes=file.nbytes, sha256=file.sha256)
            for file in artefact.files
        ],
        bits_per_weight=plan.bits_per_weight,
        seconds=artefact.seconds,
        peak_rss_bytes=artefact.peak_rss_bytes,
        verdict=_verdict(results),
        tensors=_tensors(artefact.rows, errors),
        checks=[CheckRecord.model_validate(asdict(result)) for result in (*results, *([plan.choice] if plan.choice else []))],
        speed=None,
        baseline=None,
        baseline_label=None,
        memory=requirements.records(job, plan, artefact, run=False),
        samples=[],
    )


def source_rows(snapshot: Snapshot) -> Callable[[Row, int, int], F32]:
    """The original's rows [start, stop) of a planned tensor, in the artefact's row order, float32 (stop - start, width)."""
    placed, extra = layout.placements(snapshot), layout.extra_tensors(snapshot)

    def rows(row: Row, start: int, stop: int) -> F32:
        if row.source is None:
            return extra[row.name].reshape(-1, row.shape[-1])[start:stop]
        return gguf_tensors.read_ordered(snapshot.weights, placed[row.name], start, stop)

    return rows


def _verdict(results: Sequence[CheckResult]) -> Verdict:
    if not results:
        return "unchecked"
    met = {result.verdict for result in results}
    return "fail" if "fail" in met else "unresolved" if "unresolved" in met else "pass"


def _tensors(rows: Sequence[Row], errors: Mapping[str, float]) -> list[TensorRecord]:
    return [TensorRecord(**asdict(row) | {"shape": list(row.shape), "relative_error": errors.get(row.name)}) for row in rows]
