"""Resolves what a recipe names to commits and digests, and holds a run to them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit import recipe_lock, source, workspace
from quantkit.errors import InputError
from quantkit.job import Job
from quantkit.recipe_file import Document
from quantkit.recipe_lock import Lock, Pin
from quantkit.source import files, text
from quantkit.values import Progress, Snapshot
from quantkit.version import __version__


def lock(document: Document, progress: Progress) -> Lock:
    """Every URI of the recipe resolved now; no weight is downloaded: of a file of the Hub the Hub knows the digest.

    Errors as of source.describe and text.fetch.
    """
    recipe = document.recipe
    with tempfile.TemporaryDirectory() as folder:
        texts = tuple(_text(uri, Path(folder)) for uri in recipe_lock.texts(recipe))
    matrices = [(uri, Path(uri).expanduser()) for uri in recipe_lock.matrices(recipe)]
    if absent := [uri for uri, path in matrices if not path.is_file()]:
        raise InputError(f"imatrix: there is no file {', '.join(absent)}")
    return Lock(
        quantkit=__version__,
        source=_source(recipe.source, progress),
        texts=texts,
        files=tuple(Pin(uri=uri, pinned=uri, digests={path.name: workspace.digest(path)}) for uri, path in matrices),
    )


def _source(uri: str, progress: Progress) -> Pin:
    snapshot = source.describe(uri)
    pinned = f"hf://{snapshot.repo}@{snapshot.commit}" if snapshot.kind == "hub" else uri
    if snapshot.repo and snapshot.commit and snapshot.download_bytes:
        from quantkit.source import hub

        return Pin(uri=uri, pinned=pinned, digests=hub.digests(snapshot.repo, snapshot.commit))
    digests = {path.name: files.digest(path, progress) for path in source.stored(snapshot)}
    return Pin(uri=uri, pinned=pinned, digests=digests | _described(snapshot))


def _described(snapshot: Snapshot) -> dict[str, str]:
    """The digests of what a folder says beside its weights; a commit of the Hub and a GGUF file hold it themselves."""
    if snapshot.kind != "folder":
        return {}
    tokenizer = snapshot.tokenizer
    said: dict[str, Any] = {
        "config.json": dict(snapshot.config),
        "generation_config.json": dict(snapshot.generation_config),
        "tokenizer.json": [dict(tokenizer.definition), dict(tokenizer.config), tokenizer.chat_template] if tokenizer else None,
        "licence": asdict(snapshot.licence),
    }
    return {name: workspace.key(said=value) for name, value in said.items()}


def _text(uri: str, folder: Path) -> Pin:
    found = text.fetch(uri, folder)
    pinned = found.name if found.name.startswith("hf-dataset://") else uri
    return Pin(uri=uri, pinned=pinned, digests={"text": found.sha256})


def verify(job: Job, lock: Lock | None) -> None:
    """Raise InputError where what a run was given is not what its lock says, all of it in one message."""
    if lock is None:
        return
    found: dict[str, Mapping[str, str]] = {pin.uri: {"text": text.fetch(pin.pinned, job.work).sha256} for pin in lock.texts}
    for pin in lock.files:
        path = Path(pin.pinned).expanduser()
        found[pin.uri] = {path.name: workspace.digest(path)} if path.is_file() else {}
    found[lock.source.uri] = {**job.snapshot.digests, **_described(job.snapshot)}
    wrong = [
        f"{pin.uri}: {name} is {found[pin.uri].get(name, 'gone')}, locked as {digest}"
        for pin in lock.pins
        for name, digest in pin.digests.items()
        if found[pin.uri].get(name) != digest
    ]
    if wrong:
        raise InputError("\n".join(["the lock does not hold; if the change is wanted, run quantkit lock again:", *wrong]))
