"""The whole flow on one screen: a recipe becomes verified, published artefacts and their manifest."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit import baseline, estimates, planning, sealing, source, verification, workspace
from quantkit.calibration import corpus, importance
from quantkit.errors import CheckFailed, InputError, UnresolvedError
from quantkit.formats.gguf import layout, writer
from quantkit.manifest import Manifest, TargetRecord
from quantkit.planning import Plan, TargetPlan
from quantkit.progress import silent
from quantkit.publish import folder as folder_publish
from quantkit.recipe import GgufTarget, Recipe
from quantkit.recipe_file import Document
from quantkit.report import machine
from quantkit.source import text as texts
from quantkit.values import F32, Artefact, Progress, Snapshot
from quantkit.version import __version__

_ENCODING = re.compile(r"([-.](I?Q\d\w*|TQ\d\w*|F16|F32|BF16|MXFP4))?\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; nothing here changes an artefact's bytes."""

    work_dir: Path = Path("build")
    threads: int = 0  # 0: one per core
    only: tuple[str, ...] = ()  # names or types of targets; none: all
    force: bool = False  # keep nothing of earlier runs

    @property
    def workers(self) -> int:
        return self.threads or machine.cores()


DEFAULTS = Options()


def convert(document: Document, options: Options = DEFAULTS, progress: Progress = silent) -> Manifest:
    """Run a recipe to its end and return the manifest; `judge` raises for one that did not pass.

    Everything is made in `build_folder`; it is published only when every gate of every target has passed.
    """
    snapshot = source.describe(document.recipe.source)
    made = make_plan(document, snapshot, options)
    planning.refuse(made)
    with workspace.locked(build_folder(document, options)) as work:
        if options.force:
            workspace.empty(work)
        snapshot = source.fetch(snapshot, progress)
        weighed = observe(document.recipe, made, snapshot, work, options.workers, progress)
        artefacts = [make(plan, document, snapshot, weighed, work, options, progress) for plan in made.targets]
        text, records = examine(artefacts, made, document, snapshot, work, options, progress)
        manifest = sealing.seal(document, made, snapshot, records, text, work)
        if sealing.passed(records):
            publish(document, manifest, snapshot, work)
    return manifest


def plan(document: Document, options: Options = DEFAULTS) -> Plan:
    """What `convert` would make and need, from headers alone."""
    return make_plan(document, source.describe(document.recipe.source), options)


def make_plan(document: Document, snapshot: Snapshot, options: Options) -> Plan:
    recipe, name = document.recipe, model_name(snapshot)
    chosen = _chosen(recipe, options.only)
    targets = tuple(layout.plan(target, recipe.digest(target), snapshot, name) for target in chosen)
    needs = estimates.estimate(recipe, snapshot, targets, baseline.plan(snapshot), options.workers)
    return Plan(
        recipe=document.name,
        source=snapshot.uri,
        commit=snapshot.commit,
        architecture=str(snapshot.config["model_type"]),
        parameters=snapshot.parameters(),
        reconstructed=snapshot.reconstructed,
        targets=targets,
        needs=needs,
        notes=tuple(estimates.notes(snapshot, targets)),
        missing=tuple(estimates.lacking(recipe, snapshot, targets, needs, build_folder(document, options))),
    )


def observe(recipe: Recipe, made: Plan, snapshot: Snapshot, work: Path, workers: int, progress: Progress) -> Mapping[str, F32]:
    """Importance of every matrix's columns, when a target to be made wants it; kept in `work` for a later run."""
    wanted = {target.name for target in recipe.targets if target.imatrix} & {plan.name for plan in made.targets}
    if not wanted or recipe.calibration is None:
        return {}
    text = texts.fetch(recipe.calibration.text, work)
    path = work / "importance.npz"
    parts = recipe.calibration.model_dump()
    made_from = workspace.key(source=layout.source_digest(snapshot), text=text.sha256, quantkit=__version__, **parts)
    if workspace.recall(path, made_from) is None:
        assert snapshot.tokenizer is not None
        length, tokens = recipe.calibration.length, recipe.calibration.tokens
        cut = corpus.cut(text.path, snapshot.tokenizer, chunks=tokens // length, length=length, name=text.name)
        found = importance.measure(snapshot.config, snapshot.weights, cut.tokens, threads=workers, progress=progress)
        with workspace.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **found)
        workspace.remember(path, made_from)
    return dict(np.load(path))


def make(
    plan: TargetPlan,
    document: Document,
    snapshot: Snapshot,
    weighed: Mapping[str, F32],
    work: Path,
    options: Options,
    progress: Progress,
) -> Artefact:
    """The planned file, or the same one of an earlier run."""
    target = next(target for target in document.recipe.targets if target.name == plan.name)
    chosen = weighed if target.imatrix else {}
    sums = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in chosen.items()}
    made_from = workspace.key(recipe=plan.digest, source=layout.source_digest(snapshot), quantkit=__version__, importance=sums)
    path = work / plan.file
    kept = workspace.recall(path, made_from)
    if kept is not None:
        return Artefact(plan.name, path, kept["nbytes"], kept["sha256"], plan.rows, **kept["facts"])
    target = next(target for target in document.recipe.targets if target.name == plan.name)
    artefact = writer.write(plan, target, snapshot, work, importance={}, threads=options.workers, progress=progress)
    workspace.remember(path, made_from, seconds=artefact.seconds, peak_rss_bytes=artefact.peak_rss_bytes)
    return artefact


def examine(
    artefacts: Sequence[Artefact], made: Plan, document: Document, snapshot: Snapshot, work: Path, options: Options,
    progress: Progress,
) -> tuple[dict[str, str], list[TargetRecord]]:  # fmt: skip
    """The evaluation text's name and hash, and the record of every artefact, checked unless the recipe says otherwise."""
    recipe, workers = document.recipe, options.workers
    if recipe.checks is None:
        return {}, [verification.unverified(a, p, snapshot) for a, p in zip(artefacts, made.targets, strict=True)]
    text = texts.fetch(recipe.checks.perplexity.text, work)
    reference = verification.make_reference(snapshot, text.path, text.name, recipe.checks, work, workers, progress)
    records = []
    with baseline.made(snapshot, recipe.prompts, work, workers, progress) as original:
        for artefact, plan, target in zip(artefacts, made.targets, _chosen(recipe, options.only), strict=True):
            gates = recipe.gates(target)
            assert gates is not None
            records.append(
                verification.verify(
                    artefact, plan, target, gates, reference, original, snapshot, recipe.prompts, workers, progress
                )
            )
    return {"name": text.name, "sha256": text.sha256}, records


def publish(document: Document, manifest: Manifest, snapshot: Snapshot, work: Path) -> None:
    """Every file of the build that a user wants, to each of the recipe's folders, switched at once."""
    names = [*(target.file for target in manifest.targets), *sealing.documents(manifest, snapshot)]
    files = {name: work / name for name in names}
    version = f"{manifest.created.replace(':', '')}-{manifest.recipe.digest[:8]}"
    for target in document.recipe.publish:
        folder_publish.publish(files, Path(target.folder), version)


def judge(manifest: Manifest, work: Path) -> None:
    """Raise CheckFailed (exit 3) or UnresolvedError (exit 4) for a manifest that did not pass."""
    lines = [
        f"{target.name}: {check.check}: {check.summary}"
        for target in manifest.targets
        for check in target.checks
        if check.verdict == manifest.verdict
    ]
    if manifest.verdict == "fail":
        raise CheckFailed("nothing was published; the artefacts and the report are in " + "\n  ".join([f"{work}", *lines]))
    if manifest.verdict == "unresolved":
        raise UnresolvedError("a gate cannot be decided, so nothing was published:" + "\n  ".join(["", *lines]))


def build_folder(document: Document, options: Options) -> Path:
    return options.work_dir / document.name


def model_name(snapshot: Snapshot) -> str:
    """The model's name in file names: the repository's, the file's without its encoding, or the folder's."""
    if snapshot.repo and snapshot.kind == "hub":
        return snapshot.repo
    last = Path(snapshot.uri.rstrip("/").rsplit("://", 1)[-1]).resolve().name
    return _ENCODING.sub("", last) if snapshot.kind == "gguf" else last


def leftovers(work_dir: Path) -> list[tuple[Path, int]]:
    """Build folders and what they hold, bytes."""
    folders = sorted(path for path in work_dir.glob("*") if path.is_dir())
    return [(path, sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())) for path in folders]


def remove(spaces: Sequence[tuple[Path, int]]) -> None:
    for path, _ in spaces:
        with workspace.locked(path):
            shutil.rmtree(path)


def _chosen(recipe: Recipe, only: Sequence[str]) -> tuple[GgufTarget, ...]:
    """The targets named by `only`, by name or type; all of them when it is empty. Raises InputError for an unknown name."""
    unknown = [word for word in only if not any(word in (target.name, target.type) for target in recipe.targets)]
    if unknown:
        known = ", ".join(target.name for target in recipe.targets)
        raise InputError(f"--only {', '.join(unknown)}: the recipe has no such target; it has {known}")
    return tuple(target for target in recipe.targets if not only or {target.name, target.type} & set(only))
