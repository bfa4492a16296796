"""A GPTQ checkpoint is reopened from disk, run block by block, and held to the recipe's gates."""

from __future__ import annotations

from collections.abc import Mapping

from quantkit import quality, solving, source
from quantkit.checks import divergence, perplexity, reopened, scoring
from quantkit.checks.scoring import Scores
from quantkit.engines import torch_blocks
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.quality import CHUNK, Reference
from quantkit.recipe import Latency
from quantkit.solving import Codes
from quantkit.source.quantised import QuantisedTensors
from quantkit.values import F32, Artefact, CheckResult, Row, Snapshot

_READERS = "transformers with optimum and gptqmodel, or vLLM"


def check(
    job: Job, plan: TargetPlan, artefact: Artefact, reference: Reference, codes: Codes
) -> tuple[list[CheckResult], Mapping[str, float]]:
    """Every check of one checkpoint, and the relative error of every tensor."""
    gates = job.recipe.gates(plan.target)
    assert gates is not None
    found = source.describe(str(artefact.path.parent))
    weights = found.weights
    assert isinstance(weights, QuantisedTensors)
    digests = {row.name: codes.record(row.name).codes for row in solving.quantised(plan)}

    def source_rows(row: Row, start: int, stop: int) -> F32:
        return job.snapshot.weights.read(row.name, start, stop)

    sound, errors = reopened.check(weights, plan.rows, source_rows, weights.codes, digests, progress=job.progress)
    results = [sound]
    if sound.verdict == "pass":
        scores = _score(job, found, reference)
        results += [
            perplexity.check(scores, max_ratio=gates.perplexity.max_ratio),
            divergence.check(scores, max_mean=gates.divergence.max_mean, min_same_top=gates.divergence.min_same_top),
            *([divergence.check_second(_score(job, found, reference.second))] if reference.second else []),
            _calibration(plan, codes),
            _untimed(gates.latency),
        ]
    weights.close()
    return results, errors


def _score(job: Job, found: Snapshot, reference: Reference) -> Scores:
    tokens = reference.given.tokens
    return scoring.score(
        torch_blocks.logits(found.config, found.weights, tokens, threads=job.threads, progress=job.progress),
        tokens,
        reference.hidden,
        quality.original_head(job),
        first=CHUNK // 2,
        engine=torch_blocks.name(),
        progress=job.progress,
    )


def _calibration(plan: TargetPlan, codes: Codes) -> CheckResult:
    """What calibration left open: matrices with few tokens, columns never activated, damping that had to rise."""
    records = {row.name: codes.record(row.name) for row in solving.quantised(plan)}
    few = [name for name, record in records.items() if record.tokens < solving.FEW]
    damped = [name for name, record in records.items() if record.damping > plan.gptq.damp]
    dead = sum(record.dead_columns for record in records.values())
    losses = sorted(record.loss for record in records.values() if record.tokens >= solving.FEW)
    loss = losses[len(losses) // 2] if losses else 0.0
    said = [f"relative output error {loss:.4g} in the middle matrix"] if losses else []
    if dead:
        said.append(f"{dead} columns never activated, rounded to nearest")
    if few:
        said.append(f"{len(few)} matrices met fewer than {solving.FEW} tokens, rounded to nearest: {', '.join(few[:3])}")
    if damped:
        said.append(f"{len(damped)} needed more damping: {', '.join(damped[:3])}")
    values = {"dead_columns": dead, "few_tokens": len(few), "damped": len(damped), "median_loss": loss}
    return CheckResult("calibration", "report", "; ".join(said) or "nothing left open", values, {}, "quantkit")


def _untimed(pace: Latency) -> CheckResult:
    gates = {"min_decode_ratio": pace.min_decode_ratio, "min_prefill_ratio": pace.min_prefill_ratio}
    limits = {name: limit for name, limit in gates.items() if limit is not None}
    said = f"not measured: a GPTQ checkpoint runs in {_READERS}, which quantkit does not time"
    remedy = "; set latency: report on this target" if limits else ""
    return CheckResult("latency", "unresolved" if limits else "report", said + remedy, {}, limits, "none")
