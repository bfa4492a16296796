"""A decoder whose prompt is to be fast: dynamic products where they are measured harmless, blocks of weights elsewhere.

Matrices of one place in every layer (those that share an input together) are made dynamic by themselves, and the divergence
that this costs is measured in onnxruntime on the calibration text. The cheapest are taken until their sum comes to the gate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

from quantkit import calibrating, quality, walk, workspace
from quantkit.checks import scoring
from quantkit.engines import onnxruntime_decoder
from quantkit.formats.gguf import naming
from quantkit.formats.onnx import graphs, layout, writer
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.targets import OnnxRule, OnnxTarget
from quantkit.values import F32, CheckResult, Importance

SEQUENCES = 4  # of the calibration, on which divergence is measured
HARMLESS = 0.03  # mean divergence, where the recipe has no gate


def settle(job: Job, plan: TargetPlan, observed: Mapping[str, Importance]) -> TargetPlan:
    """The final plan of a target with scheme: fast-prefill; any other as it is."""
    if plan.target.format != "onnx" or plan.onnx.scheme != "fast-prefill":
        return plan
    target = plan.onnx
    gates = job.recipe.gates(target)
    limit = (gates.divergence.max_mean if gates else None) or HARMLESS
    tokens = calibrating.calibrate(job).sequences.tokens[:SEQUENCES]
    hidden = walk.walk(job.snapshot.config, job.snapshot.weights, tokens, threads=job.threads, progress=job.progress)
    (graph,) = graphs.build(job.snapshot)
    places = sorted({place(leader) for leader in layout.sharing(graph.model).values() if place(leader) != leader})
    members = {each: [name for name, leader in layout.sharing(graph.model).items() if place(leader) == each] for each in places}

    def divergence(chosen: list[str]) -> float:
        made = with_rules(target, [name for each in chosen for name in members[each]])
        tried = layout.plan(made, plan.digest, job.snapshot, "tried")
        with workspace.temporary(job.work) as folder:
            artefact = writer.write(
                tried,
                job.snapshot,
                folder,
                importance=observed,
                solved=None,
                threads=job.threads,
                progress=job.progress,
            )
            with closing(
                onnxruntime_decoder.open_runner(artefact.path, context=tokens.shape[1], threads=job.threads)
            ) as runner:

                def logits(index: int) -> F32:
                    return runner.logits(tokens[index].tolist())

                head, first = quality.original_head(job), tokens.shape[1] // 2
                scores = scoring.score(logits, tokens, hidden, head, first=first, engine=runner.engine)
        return float(scores.kld.mean())

    base = divergence([])
    costs = {}
    for index, each in enumerate(places):
        costs[each] = max(0.0, divergence([each]) - base)
        job.progress(f"sensitivity {plan.name}", index + 1, len(places))
    chosen, total = list[str](), base
    for each in sorted(costs, key=costs.__getitem__):
        if total + costs[each] <= limit:
            chosen, total = [*chosen, each], total + costs[each]
    final = layout.plan(
        with_rules(target, [name for each in chosen for name in members[each]]),
        plan.digest,
        job.snapshot,
        naming.model_name(job.snapshot),
    )
    return replace(plan, files=final.files, bits_per_weight=final.bits_per_weight, choice=_result(costs, chosen, base, limit))


def place(name: str) -> str:
    """Where in its layer a matrix stands: its name with "*" for the layer's number."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def with_rules(target: OnnxTarget, dynamic: list[str]) -> OnnxTarget:
    """The target with these matrices dynamic, unless its own rules say otherwise."""
    places = dict.fromkeys(place(name) for name in dynamic)
    further = tuple(OnnxRule(match=each, scheme="dynamic") for each in places)
    return target.model_copy(update={"rules": (*target.rules, *further)})


def _result(costs: Mapping[str, float], chosen: list[str], base: float, limit: float) -> CheckResult:
    left = [each for each in costs if each not in chosen]
    said = f"dynamic: {', '.join(chosen) or 'none'}; blocks, since {limit:g} holds no more: {', '.join(left) or 'none'}"
    values = {"blocks alone": base, **costs}
    return CheckResult("sensitivity", "report", said, values, {"max_mean": limit}, onnxruntime_decoder.name())
