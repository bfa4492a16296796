"""Calibration from several texts and from the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit import calibrating, recipe_file, source
from quantkit.errors import RecipeError, ResourceError
from quantkit.job import Job, Options
from quantkit.progress import silent
from quantkit.recipe_file import Document
from quantkit.report import machine

RECIPE = """\
source: {source}
targets:
  - {{format: gptq, bits: 4, group: 64}}
calibration: {{tokens: 640, length: 64, text: {text}}}
checks:
  perplexity: {{chunks: 2, text: {evaluation}}}
  divergence: {{second: "builtin:python-docs"}}
  memory: {{contexts: []}}
"""


def document(place: Path, model: Path, text: str) -> Document:
    evaluation = place / "evaluation.txt"
    evaluation.write_text("The sea was calm and the wind was low. Nobody spoke. " * 400)
    path = place / "mixed.yaml"
    path.write_text(RECIPE.format(source=model, text=text, evaluation=evaluation))
    return recipe_file.read(path)


def job(given: Document, place: Path) -> Job:
    work = place / "work"
    work.mkdir(exist_ok=True)
    return Job(given.recipe, source.fetch(source.describe(given.recipe.source), silent), work, 1, silent)


def test_texts_are_mixed_by_their_shares(pico: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Seven swans swam south. " * 500)
    text = f"[{{text: 'builtin:python-docs', share: 0.75}}, {{text: '{other}', share: 0.25}}]"
    given = document(tmp_path, pico("llama"), text)
    found = calibrating.calibrate(job(given, tmp_path))
    assert found.sequences.tokens.shape == (10, 64)
    assert found.name == "8 x builtin:python-docs, 2 x other.txt"
    assert set(found.digests) == {"builtin:python-docs", "other.txt"}
    alone = calibrating.calibrate(job(document(tmp_path, pico("llama"), str(other)), tmp_path)).sequences.tokens
    assert all(row in alone.tolist() for row in found.sequences.tokens[8:].tolist())


def test_a_model_speaks_for_itself(pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = document(tmp_path, pico("llama"), "self")
    first = calibrating.calibrate(job(given, tmp_path)).sequences.tokens
    assert first.shape == (10, 64)
    assert len(np.unique(first[:, 1])) > 3, "drawn, not the likeliest"
    assert len(np.unique(first[:, 0])) == 1
    again = calibrating.calibrate(job(given, tmp_path)).sequences.tokens
    assert np.array_equal(first, again)
    assert not list((tmp_path / "work").glob("*.gguf*"))
    (tmp_path / "work" / "self.npy").unlink()
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(ResourceError, match=r"calibration: self: the model as Q8_0 needs .* GB; name a text"):
        calibrating.calibrate(job(given, tmp_path))


def test_a_second_text_is_reported(pico: Callable[[str], Path], tmp_path: Path) -> None:
    given = document(tmp_path, pico("llama"), "'builtin:python-docs'")
    manifest = quantkit.convert(tmp_path / "mixed.yaml", work_dir=tmp_path, threads=1)
    checks = {check.check: check for check in manifest.targets[0].checks}
    assert checks["divergence-second"].verdict == "report"
    assert checks["divergence-second"].values["mean_kld"] != checks["divergence"].values["mean_kld"]
    assert set(manifest.text) == {"evaluation.txt", "builtin:python-docs"}
    assert Options(work_dir=tmp_path).folder(given.name).is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{text: a.txt, share: 0.5}, {text: b.txt, share: 0.4}]", r"the shares add up to 0\.9, not to 1"),
        ("[{text: a.txt, share: 0.5}, {text: a.txt, share: 0.5}]", "the same text twice"),
        ("[{text: a.txt, share: 0.99}, {text: b.txt, share: 0.01}]", r"b\.txt gets none of 10 sequences"),
    ],
)
def test_shares_that_make_no_sense(text: str, message: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        document(tmp_path, pico("llama"), text)
