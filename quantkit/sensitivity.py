"""What matrices of a graph cost, measured in onnxruntime on other parts of the calibration text, those of one place at once.

Two choices rest on it: which products of a decoder are dynamic, for a fast prompt (scheme: fast-prefill), and which matrices
stay in float32 where a gate failed (spare: 0.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from quantkit import calibrating, serving, walk, workspace
from quantkit.engines import onnxruntime_decoder
from quantkit.formats.gguf import naming
from quantkit.formats.onnx import assembly, layout, schemes, writer
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.quality import Reference
from quantkit.spill import Codes
from quantkit.targets import OnnxRule, OnnxTarget
from quantkit.values import CheckResult, Importance

SEQUENCES = 8  # of the calibration, on which the distance is measured
HARMLESS = 0.03  # mean divergence, where the recipe has no gate


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a distance from the original is measured with."""

    job: Job
    plan: TargetPlan
    observed: Mapping[str, Importance]
    codes: Codes | None
    reference: Reference

    def distance(self, target: OnnxTarget) -> float:
        """Of an artefact of these settings, made and removed."""
        job = self.job
        tried = layout.plan(target, self.plan.digest, job.snapshot, "tried", job.graphs())
        with workspace.temporary(job.work) as folder:
            artefact = writer.write(
                tried,
                job.snapshot,
                folder,
                importance=self.observed if target.imatrix else {},
                solved=self.codes.solved if self.codes else None,
                threads=job.threads,
                progress=job.progress,
                made=job.graphs(),
            )
            return serving.distance(job, artefact.path, self.reference)


def settle(job: Job, plan: TargetPlan, observed: Mapping[str, Importance]) -> TargetPlan:
    """The final plan of a target with scheme: fast-prefill; any other as it is.

    The places that cost least are made dynamic until their sum comes to the gate on divergence, or to HARMLESS.
    """
    if plan.target.format != "onnx" or plan.onnx.scheme != "fast-prefill":
        return plan
    target, scale = plan.onnx, _scale(job, plan, observed, None)
    gates = job.recipe.gates(target)
    limit = (gates.divergence.max_mean if gates else None) or HARMLESS
    (graph,) = job.graphs()
    leaders = assembly.sharing(graph.model)
    members: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        if place(leader) != leader:
            members.setdefault(place(leader), []).append(place(name))
    base, costs = scale.distance(target), dict[str, float]()
    for index, (each, places) in enumerate(members.items()):
        costs[each] = max(0.0, scale.distance(_with(target, places, scheme="dynamic")) - base)
        job.progress(f"sensitivity {plan.name}", index + 1, len(members))
    chosen, total = list[str](), base
    for each in sorted(costs, key=costs.__getitem__):
        if total + costs[each] <= limit:
            chosen, total = [*chosen, each], total + costs[each]
    left = [each for each in costs if each not in chosen]
    said = f"dynamic: {', '.join(chosen) or 'none'}; blocks, since {limit:g} holds no more: {', '.join(left) or 'none'}"
    final = _with(target, [name for each in chosen for name in members[each]], scheme="dynamic")
    return _settled(job, plan, final, said, {"blocks alone": base, **costs})


def spare(job: Job, plan: TargetPlan, observed: Mapping[str, Importance], codes: Codes | None) -> TargetPlan | None:
    """The plan with those matrices in float32 that bring most for what they add, within `spare` of the size; None where nothing
    brings anything or fits."""
    target, scale = plan.onnx, _scale(job, plan, observed, codes)
    places = dict.fromkeys(place(row.name) for row in plan.rows if schemes.of_type(row.type) is not None)
    base, size = scale.distance(target), plan.nbytes or 0
    gains, added = dict[str, float](), dict[str, int]()
    for index, each in enumerate(places):
        without = _with(target, [each], skip=True)
        added[each] = (layout.plan(without, plan.digest, job.snapshot, "tried", job.graphs()).nbytes or 0) - size
        if added[each] <= target.spare * size:
            gains[each] = base - scale.distance(without)
        job.progress(f"sensitivity {plan.name}", index + 1, len(places))
    chosen, total = list[str](), 0
    for each in sorted(gains, key=lambda name: gains[name] / max(added[name], 1), reverse=True):
        if gains[each] > 0 and total + added[each] <= target.spare * size:
            chosen, total = [*chosen, each], total + added[each]
    if not chosen:
        return None
    said = f"a gate failed, so these stay in float32, {total / size:.1%} more: {', '.join(chosen)}"
    return _settled(job, plan, _with(target, chosen, skip=True), said, {"before": base, **gains})


def place(name: str) -> str:
    """Where in its layer a matrix stands: its name with "*" for the layer's number."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def _scale(job: Job, plan: TargetPlan, observed: Mapping[str, Importance], codes: Codes | None) -> _Scale:
    few = calibrating.held_out(job, SEQUENCES)
    hidden = walk.walk(
        job.snapshot.config,
        job.snapshot.weights,
        few.tokens,
        decoder_sequences=few.decoder_tokens,
        threads=job.threads,
        progress=job.progress,
    )
    return _Scale(job, plan, observed, codes, Reference(few, hidden))


def _with(target: OnnxTarget, places: Iterable[str], **rule: str | bool) -> OnnxTarget:
    """The target with this rule for these places, after its own rules."""
    further = tuple(OnnxRule.model_validate({"match": each, **rule}) for each in dict.fromkeys(places))
    return target.model_copy(update={"rules": (*target.rules, *further)})


def _settled(job: Job, plan: TargetPlan, target: OnnxTarget, said: str, values: Mapping[str, float]) -> TargetPlan:
    final = layout.plan(target, plan.digest, job.snapshot, naming.model_name(job.snapshot), job.graphs())
    result = CheckResult("sensitivity", "report", said, values, {}, onnxruntime_decoder.name())
    return replace(plan, files=final.files, bits_per_weight=final.bits_per_weight, choice=result)
