"""The whole flow on one screen: a recipe becomes verified, published artefacts and their manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit import (
    baseline,
    estimates,
    fitting,
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
from quantkit.formats.onnx import layout as onnx_layout
from quantkit.job import Job
from quantkit.manifest import Manifest
from quantkit.planning import Plan, TargetPlan
from quantkit.progress import silent
from quantkit.recipe import Recipe
from quantkit.recipe_file import Document
from quantkit.report import machine
from quantkit.source import text
from quantkit.spill import Codes
from quantkit.targets import Target
from quantkit.values import Artefact, Importance, Progress, Snapshot


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; nothing here changes an artefact's bytes."""

    work_dir: Path = Path("build")
    threads: int = 0  # 0: one per core
    only: tuple[str, ...] = ()  # names or types of targets; none: all
    force: bool = False  # keep nothing of earlier runs

    @property
    def workers(self) -> int:
        if self.threads < 0:
            raise InputError(f"threads = {self.threads}: give their number, or 0 for one per core")
        return self.threads or machine.cores()


DEFAULTS = Options()


def convert(document: Document, options: Options = DEFAULTS, progress: Progress = silent) -> Manifest:
    """Run a recipe to its end and return the manifest; `sealing.judge` raises for one that did not pass.

    Everything is made in `build_folder`; it is published only when every gate of every target has passed.
    """
    snapshot = source.describe(document.recipe.source)
    plan = make_plan(document, snapshot, options)
    planning.refuse(plan)
    with workspace.locked(build_folder(document, options)) as work:
        if options.force:
            workspace.empty(work)
        job = Job(document.recipe, snapshot, work, options.workers, progress)
        asked = verification.prepare(job)
        job = replace(job, snapshot=source.fetch(snapshot, progress))
        with closing(job.snapshot.weights):
            observed = making.observe(job, plan.targets)
            importance = making.write_importance(job, observed)
            targets = tuple(fitting.settle(job, target, observed, asked) for target in plan.targets)
            targets = tuple(sensitivity.settle(job, target, observed) for target in targets)
            codes = solving.solve(job, targets)
            artefacts = [_make(job, target, observed, codes) for target in targets]
            results = verification.verify_all(job, targets, artefacts, asked, codes, observed)
        manifest = sealing.seal(job, document, plan, results, importance)
        if sealing.passed(manifest):
            manifest = publishing.publish(job, manifest)
    return manifest


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
    targets = tuple(plan_target(target, recipe.digest(target), snapshot, name) for target in chosen(recipe, options.only))
    work = build_folder(document, options)
    original = baseline.plan(snapshot, work) if any(target.target.format == "gguf" for target in targets) else None
    needs = estimates.estimate(recipe, snapshot, targets, original, options.workers)
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


def plan_target(target: Target, digest: str, snapshot: Snapshot, name: str) -> TargetPlan:
    """The plan of one target by its format."""
    if target.format == "onnx":
        return onnx_layout.plan(target, digest, snapshot, name)
    if target.format == "gptq":
        return gptq_layout.plan(target, digest, snapshot, name)
    return layout.plan(target, digest, snapshot, name)


def build_folder(document: Document, options: Options) -> Path:
    return options.work_dir / document.name


def chosen(recipe: Recipe, only: Sequence[str]) -> tuple[Target, ...]:
    """The targets named by `only`, by name or type; all of them when it is empty. Raises InputError for an unknown name."""
    unknown = [word for word in only if not any(word in (target.name, target.label) for target in recipe.targets)]
    if unknown:
        known = ", ".join(target.name for target in recipe.targets)
        raise InputError(f"--only {', '.join(unknown)}: the recipe has no such target; it has {known}")
    return tuple(target for target in recipe.targets if not only or {target.name, target.label} & set(only))


def leftovers(work_dir: Path) -> list[tuple[Path, int]]:
    """Build folders and what they hold, bytes."""
    folders = sorted(path for path in work_dir.glob("*") if workspace.is_one(path))
    return [(path, sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())) for path in folders]


def remove(builds: Sequence[tuple[Path, int]]) -> None:
    """Free what `leftovers` found. Raises ResourceError for a folder that a run holds."""
    for path, _ in builds:
        with workspace.locked(path):
            shutil.rmtree(path)
