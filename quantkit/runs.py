"""A run that has nothing to do is over before the libraries are loaded that it would need: what it was made of is remembered.

Nothing big is read for it: of every file, of the source's, the texts' and its own, size, time of change and inode are known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from quantkit import places, recipe_lock, workspace
from quantkit.destinations import FolderPublish
from quantkit.errors import CheckFailed, SourceError, UnresolvedError
from quantkit.job import Options
from quantkit.manifest import Manifest
from quantkit.progress import silent
from quantkit.publish.folder import SUMS, listed
from quantkit.recipe import DEFAULT_TEXT
from quantkit.recipe_file import Document
from quantkit.report import machine
from quantkit.values import Progress
from quantkit.version import __version__

FINISHED = ".finished.json"
MOST_FILES = 10_000  # of a source's folder; with more of them it is looked at anew
_PINNED = re.compile(r"[^@]+@[0-9a-f]{40}(/.*)?")


def convert(document: Document, options: Options, progress: Progress = silent) -> Manifest:
    """Run a recipe to its end and return the manifest, as pipeline.convert does; at once, where the last run passed and
    nothing has changed since."""
    key = _key(document, options)  # of what the run begins with, whatever changes while it goes on
    if not options.force and key is not None and (manifest := recall(document, options, key)) is not None:
        return manifest
    from quantkit import pipeline

    manifest = pipeline.convert(document, options, progress)
    if key is not None and manifest.verdict not in ("fail", "unresolved"):
        remember(options.folder(document.name), key)
    return manifest


def judge(manifest: Manifest, work: Path) -> None:
    """Raise CheckFailed (exit 3) or UnresolvedError (exit 4) for a manifest that did not pass."""
    lines = [
        f"{target.name}: {check.check}: {check.summary}"
        for target in manifest.targets
        for check in target.checks
        if check.verdict == manifest.verdict
    ]
    if manifest.verdict == "fail":
        raise CheckFailed("\n  ".join([f"a check failed; nothing was published, {work} holds files and report", *lines]))
    if manifest.verdict == "unresolved":
        raise UnresolvedError("\n  ".join([f"a gate cannot be decided; nothing was published, {work} has the report", *lines]))


def recall(document: Document, options: Options, key: str) -> Manifest | None:
    """The manifest of a run that passed, when recipe, source, texts, tools and everything that it made are still the same."""
    work = options.folder(document.name)
    try:
        held = json.loads((work / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if held.get("key") != key or held["made"] != _stamps(work / name for name in held["names"]):
        return None
    manifest = Manifest.read(work / "manifest.json")
    return manifest if all(_in_force(each.folder, work) for each in _folders(document)) else None


def remember(work: Path, key: str) -> None:
    """Write down that a run has passed, what it was made of, and what it made."""
    names = [*_listed(work), SUMS]
    made = _stamps(work / name for name in names)
    with workspace.replacing(work / FINISHED) as temporary:
        temporary.write_text(json.dumps({"key": key, "names": names, "made": made}), encoding="utf-8")


def _key(document: Document, options: Options) -> str | None:
    """What a run depends on; None where that cannot be known without a network."""
    try:
        files = [_stamps(_files(uri)) for uri in _inputs(document)]
    except (SourceError, OSError, LookupError):
        return None
    return workspace.key(
        recipe=document.recipe.model_dump(),
        text=document.text,
        lock=document.lock and document.lock.model_dump(),
        only=options.only,
        threads=options.workers,
        sign_key=options.sign_key,
        files=files,
        machine=machine.describe().model_dump(include={"cpu", "python", "versions"}),
        quantkit=(__version__, _stamps(sorted(Path(__file__).parent.rglob("*.py")))),
    )


def _inputs(document: Document) -> Iterator[str]:
    """Source, texts and importance files, as the recipe names them. Raises LookupError for a branch of the Hub."""
    recipe = document.recipe
    texts = [uri for uri in recipe_lock.texts(recipe) if uri != DEFAULT_TEXT]
    for uri in (recipe.source, *texts, *recipe_lock.matrices(recipe)):
        if uri.startswith("hf-dataset://") or places.split(uri)[0] == "hf":
            if not _PINNED.fullmatch(uri.partition("?")[0]):
                raise LookupError(uri)
        else:
            yield uri


def _files(uri: str) -> list[Path]:
    path = places.local(uri)
    assert path is not None
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.rglob("*")) if file.is_file()]
    if not found or len(found) > MOST_FILES:
        raise LookupError(uri)
    return found


def _stamps(paths: Iterator[Path] | list[Path]) -> list[list[int]] | None:
    try:
        return [workspace.stamp(path) for path in paths]
    except OSError:
        return None


def _folders(document: Document) -> list[FolderPublish]:
    return [each for each in document.recipe.publish if isinstance(each, FolderPublish)]


def _in_force(folder: str, work: Path) -> bool:
    """Whether the published folder holds what the build does."""
    sums = Path(folder) / SUMS
    if not sums.is_file() or sums.read_bytes() != (work / SUMS).read_bytes():
        return False
    return all(
        (Path(folder) / name).is_file() and (Path(folder) / name).stat().st_size == (work / name).stat().st_size
        for name in _listed(work)
    )


def _listed(folder: Path) -> list[str]:
    """The names in a folder's SHA256SUMS."""
    return sorted(listed(folder / SUMS))
