"""What a CI service is told, and the workflow that is offered to it."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from report.sample_manifest import HOSTILE, sample

from quantkit import ci
from quantkit.cli import app
from quantkit.errors import InputError

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "examples" / "ci" / "quantize.yml"


def test_gates_and_summary_are_written_though_a_gate_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv(ci.SUMMARY, str(page))
    ci.tell(sample(), tmp_path / "new" / "gates.xml")
    assert ET.parse(tmp_path / "new" / "gates.xml").getroot().attrib["failures"] == "2"
    text = page.read_text()
    assert text.startswith("before\n## ✗ sample: Sample 135M Instruct")
    assert "1 passed every gate, 1 failed" in text
    assert r"| Q4\_K\_M | perplexity | ✓ pass |" in text


def test_nothing_is_written_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ci.SUMMARY, raising=False)
    monkeypatch.chdir(tmp_path)
    ci.tell(sample(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ci.SUMMARY, raising=False)
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        ci.tell(sample(), tmp_path)


def test_a_summary_holds_no_markup_from_outside() -> None:
    assert "<script" not in ci.summary(sample(name=HOSTILE))


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflow_may_only_read_and_is_given_no_secret(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    text = WORKFLOW.read_text(encoding="utf-8")
    assert "secrets." not in text
    assert "set -x" not in text
    checkout = next(step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["persist-credentials"] is False


def test_every_recipe_of_the_matrix_exists(workflow: dict[str, Any]) -> None:
    [job] = workflow["jobs"].values()
    recipes = job["strategy"]["matrix"]["recipe"]
    assert len(recipes) > 1
    assert all((ROOT / "recipes" / f"{name}.yaml").is_file() for name in recipes)
    assert job["strategy"]["fail-fast"] is False


def test_every_command_of_the_workflow_exists(workflow: dict[str, Any]) -> None:
    group: Any = typer.main.get_command(app)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    run = [shlex.split(line) for step in steps(workflow) for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    for program, *words in filter(None, run):
        if program == "make":
            assert set(words) <= targets
        elif program == ".venv/bin/quantkit":
            options = {option for param in group.commands[words[0]].params for option in param.opts}
            assert {word for word in words if word.startswith("--")} <= options
        else:
            assert program == "echo"
    verbs = [words[1] for words in run if words and words[0] == ".venv/bin/quantkit"]
    assert verbs == ["doctor", "run"]
    assert any("--junit" in words for words in run)


def test_files_are_kept_though_a_gate_failed(workflow: dict[str, Any]) -> None:
    kept = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert len(kept) == 2
    assert all(step["if"] in ("always()", "success()") for step in kept)
    assert any("report.html" in step["with"]["path"] and step["if"] == "always()" for step in kept)
