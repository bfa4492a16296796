"""What a CI service reads of a run: JUnit XML where it is asked for, a summary where GitHub Actions names a file for one."""

from __future__ import annotations

import os
from pathlib import Path

from quantkit.errors import InputError
from quantkit.manifest import Manifest
from quantkit.report import card, figures, junit
from quantkit.report.markdown import plain

SUMMARY = "GITHUB_STEP_SUMMARY"  # the variable that names the file


def tell(manifest: Manifest, junit_path: Path | None) -> None:
    """Write the gates of a run, whatever their verdict, for the service that runs it. Raises InputError."""
    summary_path = os.environ.get(SUMMARY)
    try:
        if junit_path is not None:
            junit_path.parent.mkdir(parents=True, exist_ok=True)
            junit_path.write_text(junit.render(manifest), encoding="utf-8")
        if summary_path:
            with open(summary_path, "a", encoding="utf-8") as file:
                file.write(summary(manifest) + "\n")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written: {error.strerror}") from error


def summary(manifest: Manifest) -> str:
    """Verdict, results, machines and checks, in Markdown."""
    mark, sentence = figures.MARKS[manifest.verdict], figures.verdict_sentence(manifest)
    checks = card.checks(manifest)
    parts = [
        f"## {mark} {plain(manifest.recipe.name)}: {plain(manifest.source.name)}",
        sentence,
        card.results(manifest),
        "### Can I run it?",
        card.machines(manifest),
        *(["### Checks", checks] if checks else []),
    ]
    return "\n\n".join(parts) + "\n"
