"""What lies beside the weights in a folder for transformers, read back and held against its source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.values import Snapshot

_OURS = ("quantization_config", "transformers.js_config")  # of config.json: what the format says beyond its source


def faults(folder: Path, snapshot: Snapshot, documents: Mapping[str, str]) -> list[str]:
    """Where configuration, generation settings, tokenizer, chat template or licence are not the source's, or another
    one of the planned `documents` (name -> text) is not as planned. Never raises for a fault of the folder."""
    found = list(_licence(folder, snapshot))
    held = {name: _object(folder / name) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    found += [f"{name}: no JSON object is there" for name, value in held.items() if value is None]
    if not found:
        planned = json.loads(documents["config.json"])
        ours = {key: planned[key] for key in _OURS if key in planned}
        theirs = {key: value for key, value in snapshot.config.items() if key not in _OURS}
        found += _differing("config.json", held["config.json"], theirs | ours)
        generation = _object(folder / "generation_config.json") or {}
        found += _differing("generation_config.json", generation, dict(snapshot.generation_config))
        found += _tokenizer(held["tokenizer.json"], held["tokenizer_config.json"], snapshot)
    same = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *snapshot.licence.files}
    return found + [
        f"{name}: not as planned" for name in sorted(documents.keys() - same) if _text(folder / name) != documents[name]
    ]


def _licence(folder: Path, snapshot: Snapshot) -> Iterator[str]:
    for name, text in snapshot.licence.files.items():
        if (found := _text(folder / name)) != text:
            yield f"{name}: {'gone' if found is None else 'another text'}, the source's licence is to go with every copy"


def _tokenizer(definition: Any, settings: Mapping[str, Any], snapshot: Snapshot) -> Iterator[str]:
    ours = snapshot.tokenizer
    if ours is None:
        return
    yield from _differing("tokenizer.json", definition, _as_json(ours.definition))
    if settings.get("chat_template") != ours.chat_template:
        yield "tokenizer_config.json: another chat_template than the source's"
    wanted = {key: value for key, value in _as_json(ours.config).items() if key != "chat_template"}
    said = {
        key: value for key, value in settings.items() if key != "chat_template" and (key != "tokenizer_class" or key in wanted)
    }
    yield from _differing("tokenizer_config.json", said, wanted)


def _differing(file: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    wanted = _as_json(wanted)
    names = [
        name for name in wanted.keys() | found.keys() if name not in found or name not in wanted or found[name] != wanted[name]
    ]
    return [f"{file}: {name} is {_shown(found, name)}, the source says {_shown(wanted, name)}" for name in sorted(names)]


def _shown(said: Mapping[str, Any], name: str) -> str:
    if name not in said:
        return "nothing"
    text = repr(said[name])
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _object(path: Path) -> Any:
    text = _text(path)
    try:
        found = json.loads(text) if text is not None else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
