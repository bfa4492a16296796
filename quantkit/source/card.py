"""What a checkpoint says of itself beside its weights: the front matter of its README and its licence files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from quantkit.errors import SourceError
from quantkit.source import documents
from quantkit.values import Licence

MOST_MATTER = 1 << 20  # characters; cards that list the results of benchmarks reach 300,000
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML between the "---" lines that open README.md; empty if there is none. Raises SourceError."""
    path = folder / "README.md"
    parts = documents.read_text(path, errors="replace").split("---\n", 2) if path.is_file() else []
    if len(parts) < 3 or parts[0].strip("\ufeff\n\r "):
        return {}
    if len(parts[1]) > MOST_MATTER:
        raise SourceError(
            f"README.md: the front matter has {len(parts[1]):,} characters, at most {MOST_MATTER:,} are read; shorten it"
        )
    if (deep := documents.depth(parts[1].encode())) > documents.DEPTH:
        raise SourceError(
            f"README.md: the front matter is {deep:,} levels deep, at most {documents.DEPTH} are read; correct it"
        )
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(parts[1], Loader=yaml.SafeLoader)):
            raise SourceError(
                "README.md: the front matter repeats parts of itself by aliases, which may grow without end; write it out"
            )
        found = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"README.md: the front matter is not YAML ({error}); correct it or remove it") from error
    return found if isinstance(found, dict) else {}


def licence(matter: Mapping[str, Any], folder: Path) -> Licence:
    """The licence as the front matter names it, with the licence files that must go with every copy."""
    found = {path.name: path for pattern in LICENCE_FILES for path in sorted(folder.glob(pattern)) if path.is_file()}
    files = {name: documents.read_text(path, errors="replace") for name, path in sorted(found.items())}
    said = [_text(matter.get(key)) for key in ("license", "license_name", "license_link")]
    return Licence(id=said[0], name=said[1], link=said[2], files=files)


def _text(value: Any) -> str | None:
    if isinstance(value, list):  # the Hub allows several; all of them hold
        value = ", ".join(map(str, value))
    return str(value) if value else None
