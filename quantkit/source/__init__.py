"""Checkpoints in: what a recipe's `source:` and `text:` name, described from headers, then fetched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from quantkit import places, workspace
from quantkit.errors import SourceError
from quantkit.source import folder, gguf_file, patterns
from quantkit.source.files import TensorFiles, digest
from quantkit.source.pickled import PickledTensors
from quantkit.source.quantised import QuantisedTensors
from quantkit.values import Progress, Snapshot, Tokenizer


def describe(uri: str, *, cache: Path | None = None) -> Snapshot:
    """The checkpoint that `uri` names, from headers alone: no weight is read or downloaded.

    hf://org/name@revision, a folder, a .gguf file, file://either, package://module/either, or org/name where no such
    folder exists. `cache` is huggingface_hub's folder. Raises SourceError, WeightError, UnsupportedError,
    UnresolvedError.
    """
    try:
        snapshot = _described(uri, cache)
    except OSError as error:
        raise SourceError(f"{uri}: cannot be read: {error}") from error
    if snapshot.tokenizer is not None:
        _load(snapshot.tokenizer)
    return snapshot


def _load(tokenizer: Tokenizer) -> None:
    """Raises SourceError for a tokenizer that the tokenizers library does not load, or whose expressions do not end."""
    from tokenizers import Tokenizer as Engine

    try:
        Engine.from_str(json.dumps(tokenizer.definition))
    except Exception as error:  # the library raises no narrower one
        raise SourceError(f"the tokenizer is damaged: {error}; fetch the checkpoint again") from error
    patterns.refuse_endless(tokenizer.definition)


def _described(uri: str, cache: Path | None) -> Snapshot:
    path = places.local(uri)
    if path is None:
        from quantkit.source import hub

        return hub.describe(places.split(uri)[1], cache=cache)
    if path.is_dir():
        return folder.describe(path, uri)
    if path.suffix == ".gguf":
        return gguf_file.describe(path, uri)
    raise SourceError(f"{uri}: no such folder, and not a .gguf file; a Hub repository is hf://org/name")


def fetch(snapshot: Snapshot, progress: Progress, known: Path | None = None) -> Snapshot:
    """The snapshot with its weights on disk and readable, and a sha256 for each of their files.

    known: a file that remembers the digests of files, so that none is read for it twice.

    Raises SourceError if no weights are behind it (a config.json alone), UnresolvedError if they are out of reach.
    """
    if snapshot.reconstructed and snapshot.kind != "hub":
        raise SourceError(f"{snapshot.uri} holds config.json and no weights: it can be planned, not converted")
    if snapshot.kind == "hub" and not isinstance(snapshot.weights, TensorFiles | QuantisedTensors | PickledTensors):
        from quantkit.source import hub

        snapshot = hub.fetch(snapshot, progress)
    files = stored(snapshot)
    digests = workspace.remembered(known, files, lambda path: digest(path, progress))
    return replace(snapshot, digests={path.name: found for path, found in zip(files, digests, strict=True)})


def stored(snapshot: Snapshot) -> tuple[Path, ...]:
    """The weight files of a snapshot that is on this machine. Raises SourceError where there are none."""
    if not isinstance(snapshot.weights, TensorFiles | QuantisedTensors | PickledTensors):
        raise SourceError(f"{snapshot.uri} has no weight files")
    return tuple(snapshot.weights.files)
