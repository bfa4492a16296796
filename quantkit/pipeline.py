"""The whole flow on one screen: a recipe becomes verified, published artefacts and their manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from quantkit import (
    baseline,
    checked,
    costs,
    estimates,
    fitting,
    locking,
    making,
    planning,
    publishing,
    sealing,
    sensitivity,
    serving,
    solved,
    solving,
    source,
    verification,
    workspace,
)
from quantkit.errors import InputError
from quantkit.formats.gguf import layout, naming
from quantkit.formats.gptq import layout as gptq_layout
from quantkit.formats.onnx import graphs as onnx_graphs
from quantkit.formats.onnx import layout as onnx_layout
from quantkit.formats.onnx.graph import Graph
from quantkit.job import DEFAULTS, Job, Options
from quantkit.manifest import ImportanceRecord, Manifest
from quantkit.planning import Plan, TargetPlan
from quantkit.progress import silent
from quantkit.publish import signature
from quantkit.quality import Evaluation
from quantkit.recipe import Recipe
from quantkit.recipe_file import Document
from quantkit.source import text
from quantkit.spill import Codes
from quantkit.targets import Target
from quantkit.values import Artefact, Importance, Progress, Snapshot


def convert(document: Document, options: Options = DEFAULTS, progress: Progress = silent) -> Manifest:
    """Run a recipe to its end and return the manifest; `runs.judge` raises for one that did not pass.

    Everything is made in the build folder; it is published only when every gate of every target has passed.
    """
    snapshot = source.describe(document.recipe.source)
    plan = make_plan(document, snapshot, options)
    planning.refuse(plan)
    if options.sign_key is not None and (obstacle := signature.obstacle(options.sign_key)) is not None:
        raise InputError(obstacle)
    with workspace.locked(options.folder(document.name)) as work:
        if options.force:
            workspace.empty(work)
        job, meter = Job(document.recipe, snapshot, work, options.workers, progress), costs.Meter(work)
        with meter.stage("fetch"):
            asked = verification.prepare(job)
            job = replace(job, snapshot=source.fetch(snapshot, progress, work / ".digests"))
        with closing(job.snapshot.weights):
            locking.verify(job, document.lock)
            made = _make_all(job, plan, asked, meter)
            with meter.stage("check"):
                results = checked.verify_all(job, made.targets, made.artefacts, asked, made.codes, made.observed)
        cost = meter.record(artefact.peak_rss_bytes for artefact in made.artefacts)
        manifest = sealing.seal(job, document, plan, results, cost, made.importance)
        if sealing.passed(manifest):
            manifest = publishing.publish(job, manifest, options.sign_key)
    return manifest


def remake(document: Document, snapshot: Snapshot, options: Options, progress: Progress) -> tuple[Artefact, ...]:
    """The files of a recipe's targets made of a fetched checkpoint as `convert` makes them; nothing is checked or published."""
    plan = make_plan(document, snapshot, options)
    planning.refuse(plan)
    with workspace.locked(options.folder(document.name)) as work:
        job = Job(document.recipe, snapshot, work, options.workers, progress)
        return _make_all(job, plan, verification.prepare(job), costs.Meter(work)).artefacts


@dataclass(frozen=True, slots=True)
class _Made:
    """targets: as calibration settled them. importance: its file. The others by target and by tensor."""

    targets: tuple[TargetPlan, ...]
    artefacts: tuple[Artefact, ...]
    codes: Mapping[str, Codes]
    observed: Mapping[str, Importance]
    importance: ImportanceRecord | None


def _make_all(job: Job, plan: Plan, asked: Evaluation | None, meter: costs.Meter) -> _Made:
    with meter.stage("calibrate"):
        observed = making.observe(job, plan.targets)
        importance = making.write_importance(job, observed)
    with meter.stage("choose types"):
        targets = tuple(fitting.settle(job, target, observed, asked) for target in plan.targets)
        targets = tuple(sensitivity.settle(job, target, observed) for target in targets)
    with meter.stage("solve"):
        codes = solving.solve(job, targets)
    with meter.stage("write"):
        artefacts = tuple(_make(job, target, observed, codes) for target in targets)
    return _Made(targets, artefacts, codes, observed, importance)


def _make(job: Job, plan: TargetPlan, observed: Mapping[str, Importance], codes: Mapping[str, Codes]) -> Artefact:
    if plan.target.format == "gptq":
        return solved.make(job, plan, codes[plan.name])
    if plan.target.format == "onnx":
        return serving.make(job, plan, observed, codes.get(plan.name))
    if plan.name not in codes:
        return making.make(job, plan, observed)
    return making.make(job, plan, observed, *solved.stored(plan, codes[plan.name]))


def make_plan(document: Document, snapshot: Snapshot, options: Options = DEFAULTS) -> Plan:
    """What `convert` would make and need, from headers alone."""
    recipe, name = document.recipe, naming.model_name(snapshot)
    for uri in recipe.texts():
        text.verify(uri)
    wanted = chosen(recipe, options.only)
    graphs = onnx_graphs.build(snapshot, filled=False) if any(target.format == "onnx" for target in wanted) else ()
    targets = tuple(
        plan_target(target, recipe.digest(target), snapshot, name, recipe.mark(target), graphs) for target in wanted
    )
    work = options.folder(document.name)
    original = baseline.plan(snapshot, work) if any(target.target.format == "gguf" for target in targets) else None
    needs = estimates.estimate(recipe, snapshot, targets, original, options.workers, work)
    return Plan(
        recipe=document.name,
        source=snapshot.uri,
        commit=snapshot.commit,
        architecture=str(snapshot.config["model_type"]),
        parameters=snapshot.parameters(),
        reconstructed=snapshot.reconstructed,
        targets=targets,
        needs=needs,
        notes=tuple(estimates.notes(recipe, snapshot, targets)),
        missing=tuple(estimates.lacking(recipe, snapshot, targets, needs, work)),
    )


def plan_target(
    target: Target, digest: str, snapshot: Snapshot, name: str, mark: str = "", graphs: Sequence[Graph] = ()
) -> TargetPlan:
    """The plan of one target by its format. mark: see targets.mark. graphs: the model's for ONNX, where they are there."""
    if target.format == "onnx":
        return onnx_layout.plan(target, digest, snapshot, name, graphs)
    if target.format == "gptq":
        return gptq_layout.plan(target, digest, snapshot, name)
    return layout.plan(target, digest, snapshot, name, mark)


def chosen(recipe: Recipe, only: Sequence[str]) -> tuple[Target, ...]:
    """The targets named by `only`, by name or type; all of them when it is empty. Raises InputError for an unknown name."""
    unknown = [word for word in only if not any(word in (target.name, target.label) for target in recipe.targets)]
    if unknown:
        known = ", ".join(target.name for target in recipe.targets)
        raise InputError(f"--only {', '.join(unknown)}: the recipe has no such target; it has {known}")
    return tuple(target for target in recipe.targets if not only or {target.name, target.label} & set(only))
