"""What is finished is found again: a whole run at once, a step of it where the rest has to be done anew."""

import json
import os
import shutil

import pytest

import quantkit
import quantkit.errors
from quantkit import pipeline, verification, workspace

RECIPE = """\
source: {source}
targets: [{{format: gguf, type: Q8_0}}]
checks:
  perplexity: {{chunks: 2, max_ratio: 2.0, text: {text}}}
  latency: {{rounds: 1, prompt: 32, decode: 8}}
  memory: {{contexts: []}}
publish: [{{folder: {out}}}]
prompts: ["Hello"]
"""


def never(*_, **__):
    raise AssertionError("a finished step is done again")


@pytest.fixture
def given(pico, tmp_path):
    source = shutil.copytree(pico("llama"), tmp_path / "source")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog, and does so again. " * 80)
    path = tmp_path / "pico.yaml"
    path.write_text(RECIPE.format(source=source, text=tmp_path / "text.txt", out=tmp_path / "published"))
    return path


def convert(path):
    return quantkit.convert(path, work_dir=path.parent / "build", threads=1)


def test_a_run_that_has_nothing_to_do_reads_nothing(given, monkeypatch):
    first = convert(given)
    assert [stage.name for stage in first.cost.stages] == ["fetch", "calibrate", "choose types", "solve", "write", "check"]
    assert min(first.cost.peak_rss_bytes, first.cost.disk_bytes, first.cost.seconds) > 0
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "convert", never)
        patched.setattr(workspace, "digest", never)
        assert convert(given) == first
    (given.parent / "text.txt").write_text("Another text than before, of as many words as it takes. " * 80)
    assert convert(given).text != first.text


def test_what_was_made_is_made_again_where_it_is_gone_and_its_checks_are_kept(given, monkeypatch):
    first = convert(given)
    monkeypatch.setattr(verification, "verify_all", never)
    shutil.rmtree(given.parent / "published", ignore_errors=True)
    (given.parent / "published").unlink(missing_ok=True)
    again = convert(given)
    assert again.targets == first.targets
    assert (given.parent / "published" / first.targets[0].file).is_file()
    steps = [json.loads(line) for line in (given.parent / "build/pico/.journal").read_text().splitlines()]
    assert len(steps) == len({(step["step"], step["key"]) for step in steps})
    assert {"reference.npy", "gguf-Q8_0.checks.json", first.targets[0].file} == {step["step"] for step in steps}


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_source_that_changed_is_seen(lost, given, monkeypatch):
    convert(given)
    path = given.parent / "source" / lost
    os.utime(path, ns=(1, 1))
    monkeypatch.setattr(pipeline, "convert", never)
    with pytest.raises(AssertionError, match="done again"):
        convert(given)


def test_checks_that_failed_are_measured_again(given, monkeypatch):
    given.write_text(given.read_text().replace("max_ratio: 2.0", "max_ratio: 0.5"))
    with pytest.raises(quantkit.errors.CheckFailed):
        convert(given)
    monkeypatch.setattr(verification, "verify_all", never)
    with pytest.raises(AssertionError, match="done again"):
        convert(given)


def test_a_file_is_read_for_its_digest_once(tmp_path):
    path, known = tmp_path / "large", tmp_path / "known"
    path.write_bytes(b"weights")
    assert workspace.remembered(known, [path], workspace.digest) == [workspace.digest(path)]
    assert workspace.remembered(known, [path], never) == [workspace.digest(path)]
    path.write_bytes(b"weightS")
    assert workspace.remembered(known, [path], workspace.digest) == [workspace.digest(path)]
