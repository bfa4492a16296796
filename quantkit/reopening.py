"""A GPTQ checkpoint is reopened from disk, run block by block, and held to the recipe's gates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from quantkit import costs, quality, solved, source
from quantkit.checks import carried, latency, reopened, scoring
from quantkit.checks.scoring import Scores
from quantkit.engines import torch_blocks, transformers_speed
from quantkit.errors import InputError, SourceError
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.quality import CHUNK, Found, Reference
from quantkit.recipe import Latency
from quantkit.source.files import TensorFiles
from quantkit.source.quantised import QuantisedTensors
from quantkit.spill import Codes
from quantkit.values import F32, Artefact, CheckResult, Row, Snapshot, Speed


def check(job: Job, plan: TargetPlan, artefact: Artefact, reference: Reference, codes: Codes) -> Found:
    """Every check of one checkpoint."""
    gates = job.recipe.gates(plan.target)
    assert gates is not None
    laps = costs.Laps()
    beside = carried.faults(artefact.path.parent, job.snapshot, solved.documents(job.recipe, job.snapshot, plan))
    try:
        found = source.describe(str(artefact.path.parent))
        weights = found.weights
        if not isinstance(weights, QuantisedTensors):
            raise SourceError("config.json says nothing of its quantisation")
    except InputError as error:
        said = "; ".join(["it is not read as a checkpoint: " + str(error), *beside])
        return Found(laps.end(CheckResult("integrity", "fail", said, {}, {}, "quantkit")), {})
    digests = {row.name: codes.record(row.name).codes for row in solved.quantised(plan)}

    def source_rows(row: Row, start: int, stop: int) -> F32:
        return job.snapshot.weights.read(row.name, start, stop)

    sound, errors = reopened.check(weights, plan.rows, source_rows, weights.codes, digests, beside, progress=job.progress)
    results, speed, original = laps.end(sound), None, None
    if sound.verdict == "pass":
        second = _score(job, found, reference.second) if reference.second else None
        results += laps.end(*quality.judge(job, _score(job, found, reference), gates, second))
        results += laps.end(solved.account(plan, codes))
        timed, speed, original = _time(job, artefact, gates.latency)
        results += laps.end(timed)
    weights.close()
    return Found(results, errors, speed, original, "the source, in transformers")


def _score(job: Job, found: Snapshot, reference: Reference) -> Scores:
    tokens = reference.given.tokens
    return scoring.score(
        torch_blocks.logits(found.config, found.weights, tokens, threads=job.threads, progress=job.progress),
        tokens,
        reference.hidden,
        quality.original_head(job),
        first=CHUNK // 2,
        engine=torch_blocks.name(),
        questions=reference.questions,
        progress=job.progress,
    )


def _time(job: Job, artefact: Artefact, pace: Latency) -> tuple[CheckResult, Speed | None, Speed | None]:
    """The checkpoint's speed in transformers against its original's, where both can be run; else why not."""
    gates = {"min_decode_ratio": pace.min_decode_ratio, "min_prefill_ratio": pace.min_prefill_ratio}
    original = _folder(job.snapshot)
    if transformers_speed.available() and original is not None:
        measure = partial(transformers_speed.measure, threads=job.threads, prompt=pace.prompt, decode=pace.decode)
        return latency.check(measure, artefact.path.parent, original, rounds=pace.rounds, **gates, progress=job.progress)
    limits = {name: limit for name, limit in gates.items() if limit is not None}
    why = "optimum and gptqmodel, with which transformers reads it, are not installed"
    why = "its original is a GGUF file, which transformers does not time" if original is None else why
    remedy = "; set latency: report on this target" if limits else ""
    result = CheckResult("latency", "unresolved" if limits else "report", f"not measured: {why}{remedy}", {}, limits, "none")
    return result, None, None


def _folder(snapshot: Snapshot) -> Path | None:
    """Where transformers finds the original."""
    if snapshot.kind == "gguf" or not isinstance(snapshot.weights, TensorFiles | QuantisedTensors):
        return None
    return snapshot.weights.files[0].parent
