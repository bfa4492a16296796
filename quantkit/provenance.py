"""Whether a published folder is what it says: digests, signature, and what follows from the source, derived from it again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from pydantic import ValidationError

from quantkit import arch, costs, licensing, pipeline, recipe_file, recipe_lock, solved, source, workspace
from quantkit.checks import carried, integrity
from quantkit.checks.verdict import Verdict
from quantkit.codecs import gguf_kv
from quantkit.errors import CheckFailed, InputError
from quantkit.formats.gguf import layout, splitting, writer
from quantkit.formats.gptq import layout as gptq_layout
from quantkit.formats.onnx import layout as onnx_layout
from quantkit.job import Options
from quantkit.manifest import Manifest, TargetRecord, TensorRecord
from quantkit.publish import signature
from quantkit.publish.folder import SUMS, listed
from quantkit.recipe import Recipe
from quantkit.recipe_file import Document
from quantkit.report import machine
from quantkit.targets import GgufTarget, GptqTarget, Target
from quantkit.values import U8, CheckResult, Importance, Progress, Row, Snapshot
from quantkit.version import __version__


@dataclass(frozen=True, slots=True)
class Asked:
    """key: a public key. source: where the source lies now, in place of the manifest's. sample: tensors of every GGUF to derive
    again, those of `seed`; 0: nothing is held against the source. rerun: targets whose codes follow from a whole run are made
    once more, in a temporary folder."""

    key: Path | None = None
    source: str | None = None
    sample: int = 8
    seed: int = 0
    rerun: bool = False


def verify(folder: Path, asked: Asked, threads: int, progress: Progress) -> list[CheckResult]:
    """Every check of a published folder. Raises InputError for a folder without manifest or SHA256SUMS, and the errors of
    source.describe and source.fetch where tensors are to be derived from a source that cannot be had."""
    folder = folder.resolve()
    manifest, sums, laps = _manifest(folder), listed(folder / SUMS), costs.Laps()
    whole = _check_digests(folder, manifest, sums)
    found = [*laps.end(whole), *laps.end(_check_recipe(manifest)), *laps.end(licensing.check(folder, manifest))]
    found += laps.end(_check_signature(folder, asked.key))
    if asked.sample and whole.verdict == "pass":
        for result in _derive(folder, manifest, asked, threads, progress):
            found += laps.end(result)
    return found


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.read(folder / "manifest.json")
    except (OSError, ValidationError) as error:
        raise InputError(f"{folder} has no manifest.json of quantkit's: {error}") from error


def _check_digests(folder: Path, manifest: Manifest, sums: Mapping[str, str]) -> CheckResult:
    wrong = [f"{name} is gone" for name in sums if not (folder / name).is_file()]
    here = {name: workspace.digest(folder / name) for name in sums if (folder / name).is_file()}
    wrong += [f"{name} has another digest" for name, digest in here.items() if digest != sums[name]]
    wrong += [f"{file.name}: manifest and {SUMS} differ" for file in manifest.files if sums.get(file.name) != file.sha256]
    inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strange = sorted(name for name in inside - sums.keys() - {SUMS, signature.NAME} if not name.startswith("."))
    wrong += [f"{name} is listed nowhere" for name in strange]
    return _result("digests", wrong, f"{len(sums)} files are as {SUMS} and manifest.json say")


def _check_recipe(manifest: Manifest) -> CheckResult:
    """Whether the recipe as typed is the one whose digest the manifest has; a locked one has other URIs than were typed."""
    recipe = _document(manifest).recipe
    named = {target.name for target in recipe.targets}
    wrong = [f"{target.name} is no target of its recipe" for target in manifest.targets if target.name not in named]
    if manifest.recipe.lock is None and recipe.whole_digest() != manifest.recipe.digest:
        wrong.append("the recipe has another digest than the manifest says")
    return _result("recipe", wrong, f"recipe {manifest.recipe.digest[:12]} names these targets")


def _check_signature(folder: Path, key: Path | None) -> CheckResult:
    signed = (folder / signature.NAME).is_file()
    if key is None:
        said = "signed: give the public key with --key to verify it" if signed else "not signed"
        return CheckResult("signature", "report", said, {}, {}, "model-signing")
    if not signed:
        return _result("signature", [f"there is no {signature.NAME}, and a key was given"], "", engine="model-signing")
    wrong = signature.verify(folder, key)
    return _result("signature", [wrong] if wrong else [], f"{signature.NAME} is by this key", engine="model-signing")


def _derive(folder: Path, manifest: Manifest, asked: Asked, threads: int, progress: Progress) -> Iterator[CheckResult]:
    recipe, said = _recipe(manifest), manifest.source
    uri = asked.source or (f"hf://{said.repo}@{said.commit}" if said.kind == "hub" else said.uri)
    snapshot = source.fetch(source.describe(uri), progress)
    if dict(snapshot.digests) != said.digests:
        yield _result("source", [f"{uri} is another checkpoint than the manifest's"], "")
        return
    texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in snapshot.licence.files.items()}
    if texts != said.licence_files or snapshot.licence.id != said.licence:
        yield _result("source", [f"{uri} is under another licence than the manifest says"], "")
        return
    yield _result("source", [], f"{uri} is the checkpoint that the manifest names")
    if said.kind == "hub":  # wherever it lies now
        snapshot = replace(snapshot, kind="hub", repo=said.repo, commit=said.commit, name=snapshot.name or said.name)
    snapshot = replace(snapshot, uri=said.uri)
    here, whole = machine.describe().cpu_class, list[TargetRecord]()
    for target in manifest.targets:
        named = next(each for each in recipe.targets if each.name == target.name)
        wrong = _differing(folder, manifest, recipe, named, target, snapshot)
        yield _result(f"documents {target.name}", wrong, "what it says beside its weights is the source's")
        if not isinstance(named, GgufTarget) or named.codes == "gptq":
            whole.append(target)
            continue
        wrong, count = _derive_target(folder, manifest, named, target, snapshot, asked, threads)
        also = "" if here == manifest.machine.cpu_class else f" (made on {manifest.machine.cpu_class}, this is {here})"
        good = f"{count} tensors of {len(target.tensors)} derived from the source bit for bit"
        yield _result(f"derivation {target.name}", [each + also for each in wrong], good)
    if asked.rerun and whole:
        yield from _remade(manifest, recipe, whole, snapshot, threads, progress)
    elif whole:
        why = "its codes follow from a whole run, which --rerun makes and compares"
        yield from (CheckResult(f"derivation {target.name}", "report", why, {}, {}, "quantkit") for target in whole)


def _remade(
    manifest: Manifest, recipe: Recipe, targets: Sequence[TargetRecord], snapshot: Snapshot, threads: int, progress: Progress
) -> Iterator[CheckResult]:
    """Targets made once more. What differs is a fault only where the CPU is of the class that made them: float sums differ on
    others."""
    here, document = machine.describe().cpu_class, replace(_document(manifest), recipe=recipe)
    with tempfile.TemporaryDirectory(prefix="quantkit-verify-") as place:
        options = Options(Path(place), threads, tuple(target.name for target in targets))
        artefacts = pipeline.remake(document, snapshot, options, progress)
        work = options.folder(document.name).resolve()
        made = {
            artefact.target: {file.path.resolve().relative_to(work).as_posix(): file.sha256 for file in artefact.files}
            for artefact in artefacts
        }
    for target in targets:
        theirs, ours = {file.name: file.sha256 for file in target.files}, made[target.name]
        wrong = [f"{name} is another one" for name in sorted(theirs.keys() | ours) if theirs.get(name) != ours.get(name)]
        found = _result(f"derivation {target.name}", wrong, f"a run of its recipe gives the same {len(theirs)} files")
        excuse = ""
        if (here, __version__) != (manifest.machine.cpu_class, manifest.quantkit):
            excuse = f" (made by quantkit {manifest.quantkit} on {manifest.machine.cpu_class}, this is {__version__} on {here})"
        elif any(check.check == "sensitivity" for check in target.checks):
            excuse = " (what stays in float32 was chosen by a check: quantkit run the recipe and compare digests)"
        if wrong and excuse:
            found = replace(found, verdict="report", summary=found.summary + excuse)
        yield found


def _document(manifest: Manifest) -> Document:
    return recipe_file.parse(manifest.recipe.text, manifest.recipe.name, "manifest.json")


def _recipe(manifest: Manifest) -> Recipe:
    """The recipe as it was run: with every URI as its lock pins it."""
    recipe = _document(manifest).recipe
    if manifest.recipe.lock is None:
        return recipe
    return recipe_lock.pinned(recipe, recipe_lock.Lock.model_validate_json(manifest.recipe.lock))


def _differing(
    folder: Path, manifest: Manifest, recipe: Recipe, named: Target, target: TargetRecord, snapshot: Snapshot
) -> list[str]:
    """Where a GGUF's metadata, or the documents in a folder of another format, are not what source and recipe give."""
    digest, files, made_by = recipe.digest(named), [folder / file.name for file in target.files], manifest.quantkit
    if isinstance(named, GgufTarget):
        pairs = layout.metadata(named, digest, snapshot)
        pairs = [replace(pair, value=made_by) if pair.key == "quantkit.version" else pair for pair in pairs]
        said = splitting.said(pairs, len(files), len(target.tensors), arch.find(snapshot.config).gguf)
        wrong = [fault for path, each in zip(files, said, strict=True) for fault in integrity.said(path, each)]
    else:
        if isinstance(named, GptqTarget):
            documents = solved.documents(recipe, snapshot, gptq_layout.plan(named, digest, snapshot, target.file))
        else:  # what the builder of its graph says follows from a whole run
            documents = onnx_layout.documents(named, snapshot)
        documents = {name: text.replace(f"quantkit:{__version__}", f"quantkit:{made_by}") for name, text in documents.items()}
        wrong = carried.faults(folder / target.file.partition("/")[0], snapshot, documents)
    also = "" if made_by == __version__ else f" (made by quantkit {made_by}, this is {__version__})"
    return [each + also for each in wrong]


def _derive_target(
    folder: Path, manifest: Manifest, named: GgufTarget, target: TargetRecord, snapshot: Snapshot, asked: Asked, threads: int
) -> tuple[list[str], int]:
    """What differs, and how many tensors were derived."""
    importance: Mapping[str, Importance] = {}
    if named.imatrix:
        shipped = manifest.importance.file.name if manifest.importance else str(named.imatrix)
        path = folder / shipped if manifest.importance and named.imatrix is True else Path(shipped).expanduser()
        if not path.is_file():
            return [f"{path} is not there, by which its codes were weighed"], 0
        importance = layout.read_importance(snapshot, path)
    held = _tensors([folder / file.name for file in target.files])
    chosen = Random(asked.seed).sample(target.tensors, min(asked.sample, len(target.tensors)))
    wrong = []
    for tensor in chosen:
        packed = writer.encoded(_row(tensor), snapshot, importance.get(tensor.name), threads)
        path, offset = held[tensor.name]
        stored: U8 = np.fromfile(path, np.uint8, tensor.nbytes, offset=offset)
        if not np.array_equal(packed.reshape(-1).view(np.uint8), stored):
            wrong.append(f"{tensor.name} is not what the source and the recipe give")
    return wrong, len(chosen)


def _row(tensor: TensorRecord) -> Row:
    return Row(
        tensor.name, tensor.source, tuple(tensor.shape), tensor.source_dtype, tensor.type, tensor.wanted, tensor.reason,
        tensor.nbytes,
    )  # fmt: skip


def _tensors(paths: Sequence[Path]) -> dict[str, tuple[Path, int]]:
    """Where each tensor's bytes begin, by name, in the files of a GGUF."""
    found: dict[str, tuple[Path, int]] = {}
    for path in paths:
        header = gguf_kv.read(path)
        found |= {record.name: (path, header.data_offset + record.offset) for record in header.tensors}
    return found


def _result(check: str, wrong: Sequence[str], good: str, *, engine: str = "quantkit") -> CheckResult:
    verdict: Verdict = "fail" if wrong else "pass"
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return CheckResult(check, verdict, "; ".join(wrong[:5]) + more if wrong else good, {}, {}, engine)


def judge(folder: Path, found: Sequence[CheckResult]) -> None:
    """Raise CheckFailed where a check failed."""
    if failed := [f"{result.check}: {result.summary}" for result in found if result.verdict == "fail"]:
        raise CheckFailed("\n  ".join([f"{folder} is not what it says", *failed]))
