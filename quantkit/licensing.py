"""Whether what is published carries its source's licence: the texts beside the files, and its name in the card."""

from __future__ import annotations

from pathlib import Path

from quantkit import workspace
from quantkit.checks.verdict import Verdict
from quantkit.errors import CheckFailed, SourceError
from quantkit.manifest import Manifest
from quantkit.source import card
from quantkit.values import CheckResult


def check(folder: Path, manifest: Manifest) -> CheckResult:
    """The licence's files in a folder by their digests, and the front matter of its README.md, as the manifest has them."""
    source, faults = manifest.source, []
    for name, digest in source.licence_files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is gone, the source's licence is to go with every copy")
        elif workspace.digest(path) != digest:
            faults.append(f"{name} is another text than the source's")
    try:
        said = card.front_matter(folder)
    except SourceError as error:
        return _result([*faults, str(error)], "")
    for key, wanted in (
        ("license", source.licence),
        ("license_name", source.licence_name),
        ("license_link", source.licence_link),
    ):
        plain = " ".join(wanted.split()) if wanted and source.licence else None
        if said.get(key) != plain:
            faults.append(f"README.md: {key} is {said.get(key)!r}, the source says {plain!r}")
    return _result(
        faults, f"{source.licence or 'no licence named'}, with {len(source.licence_files)} files as the source has them"
    )


def hold(folder: Path, manifest: Manifest) -> None:
    """Raise CheckFailed where `check` finds a fault."""
    found = check(folder, manifest)
    if found.verdict == "fail":
        raise CheckFailed(f"licence: {found.summary}; nothing was published. Run the recipe again with --force")


def _result(faults: list[str], good: str) -> CheckResult:
    verdict: Verdict = "fail" if faults else "pass"
    return CheckResult("licence", verdict, "; ".join(faults) or good, {"faults": len(faults)}, {}, "quantkit")
