"""Whole runs: a recipe becomes published artefacts, or says why not and leaves nothing that looks finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gguf
import pytest
from checkpoints import TEXT, write_gguf

import quantkit
from quantkit import pipeline, recipe_file, source
from quantkit.errors import CheckFailed, InputError, QuantkitError, ResourceError, UnresolvedError
from quantkit.job import Options
from quantkit.manifest import Manifest
from quantkit.report.contents import Report

RECIPE = """\
source: {source}
targets:
  - {{format: gguf, type: Q8_0}}
  - {{format: gguf, type: Q4_K_M}}
checks:
  perplexity: {{chunks: 2, max_ratio: {ratio}}}
  divergence: {{max_mean: 1.0}}
  latency: {{rounds: 1, prompt: 32, decode: 8}}
  memory: {{contexts: []}}
publish:
  - folder: {out}
prompts: ["Hello"]
"""


@pytest.fixture
def recipe(pico, tmp_path):
    def make(ratio=2.0, source=None, **changes):
        text = RECIPE.format(source=source or pico("llama"), ratio=ratio, out=tmp_path / "published")
        for old, new in changes.items():
            text = text.replace(old, new)
        path = tmp_path / "pico.yaml"
        path.write_text(text)
        return path

    return make


def convert(*given, **options):
    """On one thread: with two, llama.cpp's threads wait for each other minutes long when the machine is busy."""
    return quantkit.convert(*given, **{"threads": 1} | options)


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))


def test_a_recipe_becomes_a_published_folder(recipe, tmp_path):
    manifest = convert(recipe(), work_dir=tmp_path / "build")
    assert manifest.verdict == "pass"
    published = tmp_path / "published"
    ggufs = [target.file for target in manifest.targets]
    assert set(ggufs) < set(files(published))
    assert {"manifest.json", "report.html", "report.json", "README.md", "Modelfile", "SHA256SUMS"} <= set(files(published))
    assert "  report.json\n" in (published / "SHA256SUMS").read_text()
    assert Report.model_validate_json((published / "report.json").read_text()).verdict == "pass"
    assert Manifest.read(published / "manifest.json") == manifest
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=published, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    for target in manifest.targets:
        names = ["integrity", "tokenizer", "perplexity", "divergence", "cloze", "latency"]
        assert [check.check for check in target.checks] == names
        assert [check.check for check in target.checks if not check.seconds] == ["divergence", "cloze"]  # perplexity has it
        assert all(len(means) == 2 for check in target.checks for means in check.chunk_means.values())
        assert target.speed.peak_rss_bytes > 0
        assert all(tensor.relative_error is not None for tensor in target.tensors)
        assert [sample.prompt for sample in target.samples] == ["Hello"]


def test_cloze_is_a_second_opinion(recipe, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text(TEXT * 40, encoding="utf-8")
    path = recipe(**{"chunks: 2,": f"text: {text}, chunks: 2,", "divergence:": "cloze: report\n  divergence:"})
    manifest = convert(path, work_dir=tmp_path / "build")
    for target in manifest.targets:
        found = next(check for check in target.checks if check.check == "cloze")
        assert found.values["questions"] >= 4
        assert found.engine.startswith("llama.cpp")
        assert found.verdict == "report"


def test_a_failed_gate_publishes_nothing_and_still_reports(recipe, tmp_path):
    with pytest.raises(CheckFailed, match="perplexity"):
        convert(recipe(ratio=0.5), work_dir=tmp_path / "build")
    assert not (tmp_path / "published").exists()
    assert {"manifest.json", "report.html"} <= set(files(tmp_path / "build" / "pico"))
    assert Manifest.read(tmp_path / "build" / "pico" / "manifest.json").published == []


def test_a_manifest_claims_no_publishing_that_failed(recipe, tmp_path, monkeypatch):
    def fail(*_):
        raise ResourceError("the disk is full")

    monkeypatch.setattr("quantkit.publish.folder.publish", fail)
    with pytest.raises(ResourceError, match="the disk is full"):
        convert(recipe(), work_dir=tmp_path / "build")
    assert Manifest.read(tmp_path / "build" / "pico" / "manifest.json").published == []


def test_a_second_run_keeps_what_is_finished_and_force_does_not(recipe, tmp_path):
    path, work = recipe(), tmp_path / "build"
    first = convert(path, work_dir=work)
    stamp = {target.file: (work / "pico" / target.file).stat().st_mtime_ns for target in first.targets}
    again = convert(path, work_dir=work)
    assert {name: (work / "pico" / name).stat().st_mtime_ns for name in stamp} == stamp
    forced = convert(path, work_dir=work, force=True)
    assert {target.file: target.sha256 for target in first.targets} == {t.file: t.sha256 for t in again.targets}
    assert {target.file: target.sha256 for target in first.targets} == {t.file: t.sha256 for t in forced.targets}
    assert {name: (work / "pico" / name).stat().st_mtime_ns for name in stamp} != stamp


def test_without_a_recipe(pico, tmp_path):
    manifest = convert(pico("llama"), type="Q4_0", out=tmp_path / "out", checks=False, work_dir=tmp_path / "build")
    assert manifest.verdict == "unchecked"
    assert manifest.targets[0].file in files(tmp_path / "out")


def test_imatrix_changes_the_codes_and_repeats_itself(pico, tmp_path):
    text = (
        "source: {}\ntargets: [{{format: gguf, type: Q4_K_M, imatrix: true}}]\nchecks: false\ncalibration: {{tokens: 1024}}\n"
    )
    path = tmp_path / "pico.yaml"
    path.write_text(text.format(pico("llama")))
    one = convert(path, work_dir=tmp_path / "a", threads=1).targets[0]
    two = convert(path, work_dir=tmp_path / "b", threads=2).targets[0]
    plain = convert(pico("llama"), type="Q4_K_M", checks=False, work_dir=tmp_path / "c").targets[0]
    assert one.sha256 == two.sha256 != plain.sha256


def test_plan_says_everything_before_a_weight_is_read(recipe, tmp_path):
    plan = quantkit.plan(recipe(), work_dir=tmp_path / "build")
    manifest = convert(recipe(), work_dir=tmp_path / "build")
    assert {target.file: target.nbytes for target in plan.targets} == {t.file: t.nbytes for t in manifest.targets}
    assert not plan.missing
    assert plan.needs.memory > 0
    json.dumps(plan.as_json())


def test_only_makes_the_named_target(recipe, tmp_path):
    manifest = convert(recipe(), only=["Q8_0"], work_dir=tmp_path / "build")
    assert [target.type for target in manifest.targets] == ["Q8_0"]
    assert [target.name for target in quantkit.plan(recipe(), only="Q4_K_M").targets] == ["gguf-Q4_K_M"]
    with pytest.raises(InputError, match="it has gguf-Q8_0, gguf-Q4_K_M"):
        convert(recipe(), only=["Q2_K"], work_dir=tmp_path / "build")


def test_strict_makes_a_fallback_an_error(smollm2, tmp_path):
    path = tmp_path / "strict.yaml"
    path.write_text(f"source: {smollm2}\nstrict: true\ntargets:\n  - {{format: gguf, type: Q4_K_M}}\n")
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight would be Q5_0: .*576"):
        convert(path, work_dir=tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_too_short_a_text_is_unresolved(recipe, tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    path = recipe(**{"{chunks: 2": f"{{text: {tmp_path / 'short.txt'}, chunks: 2"})
    with pytest.raises(UnresolvedError, match="2 chunks of 512 need 1024"):
        convert(path, work_dir=tmp_path / "build")
    assert not (tmp_path / "published").exists()


def test_what_cannot_be_asked_is_found_before_anything_is_made(recipe, tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    for fault, changes in (
        ("no such text file", {"{chunks: 2": "{text: nowhere.txt, chunks: 2"}),
        ("need 1024", {"{chunks: 2": f"{{text: {tmp_path / 'short.txt'}, chunks: 2"}),
        ("1 to 448 can be answered", {'"Hello"': '"' + 600 * "long " + '"'}),
    ):
        with pytest.raises(QuantkitError, match=fault):
            convert(recipe(**changes), work_dir=tmp_path / "build")
        assert not list(tmp_path.rglob("*.gguf*"))


@pytest.mark.parametrize("lost", ["tokenizer.json", "publish"])
def test_the_plan_says_what_would_stop_the_run(pico, recipe, tmp_path, lost):
    source = shutil.copytree(pico("llama"), tmp_path / "model")
    if lost == "publish":
        (tmp_path / "published").mkdir()
    else:
        (source / lost).unlink()
    plan = quantkit.plan(recipe(source=source), work_dir=tmp_path / "build")
    assert [missing.kind for missing in plan.missing] == [lost.removesuffix(".json")]
    with pytest.raises(InputError, match=r"has no tokenizer|was not published by quantkit"):
        convert(recipe(source=source), work_dir=tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_a_mended_tokenizer_makes_a_new_file(pico, tmp_path):
    source = shutil.copytree(pico("llama"), tmp_path / "model")
    settings = {"type": "Q8_0", "checks": False, "work_dir": tmp_path / "build"}
    before = convert(source, **settings).targets[0].sha256
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    assert convert(source, **settings).targets[0].sha256 != before


def test_bytes_do_not_depend_on_names(pico, tmp_path):
    snapshot = source.describe(str(pico("llama")))
    settings = {"type": "Q8_0", "checks": False, "work_dir": tmp_path / "build"}
    digests = {convert(write_gguf(snapshot, tmp_path / f"{name}.gguf"), **settings).targets[0].sha256 for name in "ab"}
    assert len(digests) == 1


def test_a_work_folder_that_cannot_be_made(pico, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be worked in: Not a directory"):
        convert(pico("llama"), type="Q8_0", checks=False, work_dir=tmp_path / "file")


def test_threads_below_zero(pico, tmp_path):
    with pytest.raises(InputError, match="threads = -1"):
        convert(pico("llama"), type="Q8_0", threads=-1, work_dir=tmp_path)


def test_a_second_run_at_once_says_so(recipe, tmp_path):
    from quantkit import workspace

    with workspace.locked(tmp_path / "build" / "pico"), pytest.raises(ResourceError, match="another run is at work"):
        convert(recipe(), work_dir=tmp_path / "build")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_a_temporary_name_at_most(smollm2, tmp_path, how):
    command = ["nice", "-n", "5", sys.executable, "-m", "quantkit", "run"]  # slower than we look, on a busy machine too
    command += ["--source", smollm2, "--type", "IQ4_NL", "--no-checks"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for attempt in range(4):  # a run that ended before we looked was not interrupted
        build = tmp_path / f"build{attempt}"
        options = ["--threads", "1", "--work-dir", str(build)]
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell has its background jobs ignore it
        child = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, env=environment, text=True, preexec_fn=heard)
        deadline = time.monotonic() + 120
        while not list(build.glob("*/*.gguf.partial")) and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(how)
        said = child.communicate(timeout=120)[1]
        if child.returncode != 0:
            break
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(how, -how), said
    assert not list(build.glob("*/*.gguf"))
    left = list(build.glob("*/*.partial"))
    assert left if how == signal.SIGKILL else not left
    manifest = convert(smollm2, type="IQ4_NL", checks=False, work_dir=build)
    assert not list(build.glob("*/*.partial"))
    assert list(build.glob(f"*/{manifest.targets[0].file}"))


def test_the_baseline_is_cut_where_the_whole_does_not_fit(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("quantkit.baseline.fits", lambda *_, **__: False)
    document = recipe_file.read(recipe(**{"contexts: []": "contexts: [512]"}))
    manifest = pipeline.convert(document, Options(work_dir=tmp_path / "build", only=("Q8_0",), threads=1))
    (target,) = manifest.targets
    assert "first 2 layers" in target.baseline_label
    assert "first 2 layers" in next(check.summary for check in target.checks if check.check == "latency")
    assert target.baseline is None, "two layers' speed is not the model's"
    assert [record.context for record in target.memory if record.measured] == [512]
    assert manifest.verdict == "pass"


def test_sequences_longer_than_the_context_are_refused(pico, tmp_path):
    text = (
        "source: {}\ntargets: [{{format: gguf, type: Q4_K_M, imatrix: true}}]\nchecks: false\n"
        "calibration: {{tokens: 8192, length: 4096}}\n"
    )
    path = tmp_path / "pico.yaml"
    path.write_text(text.format(pico("llama")))
    with pytest.raises(InputError, match="length 4096 exceeds the model's context of 2048"):
        convert(path, work_dir=tmp_path / "a")


def test_an_imatrix_lies_beside_and_is_read_again(pico, tmp_path):
    text = (
        "source: {}\ntargets: [{{format: gguf, type: Q3_K_M, imatrix: true}}]\nchecks: false\ncalibration: {{tokens: 1024}}\n"
        "publish: [{{folder: {}}}]\n"
    )
    path = tmp_path / "pico.yaml"
    path.write_text(text.format(pico("mixtral"), tmp_path / "out"))
    manifest = convert(path, work_dir=tmp_path / "a", threads=1)
    assert manifest.importance.experts == 3 * 2 * 4
    assert manifest.importance.file.name in files(tmp_path / "out")
    kept = tmp_path / "out" / manifest.importance.file.name
    again = convert(one_target(tmp_path, pico("mixtral"), f"type: Q3_K_M, imatrix: {kept}"), work_dir=tmp_path / "b")
    pair = tmp_path / "a" / "pico" / manifest.targets[0].file, tmp_path / "b" / "one" / again.targets[0].file
    one, two = ({t.name: t.data.tobytes() for t in gguf.GGUFReader(file).tensors} for file in pair)
    same = [name for name in one if one[name] == two[name]]
    assert len(same) > 0.8 * len(one)  # means that went through float32 sums may round a code otherwise


def one_target(folder, source, keys):
    """A recipe of one target and no checks."""
    path = folder / "one.yaml"
    path.write_text(f"source: {source}\ntargets: [{{format: gguf, {keys}}}]\nchecks: false\n")
    return path


def test_types_for_a_size(pico, tmp_path):
    sizes = {}
    for budget in (1_000_000, 1_150_000, 1_300_000):
        recipe = one_target(tmp_path, pico("llama"), f"type: auto, size: {budget}")
        target = convert(recipe, work_dir=tmp_path / str(budget), threads=1).targets[0]
        sizes[budget] = target.nbytes
        assert 0.98 * budget <= target.nbytes <= budget  # one tensor takes 1 % of so small a file
        assert [check.check for check in target.checks] == ["allocation"]
        assert len({tensor.type for tensor in target.tensors}) > 2
    assert list(sizes.values()) == sorted(sizes.values())


def test_a_size_below_every_mixture_is_refused(pico, tmp_path):
    with pytest.raises(InputError, match=r"100,000 bytes hold no mixture of this model; the smallest, TQ1_0, takes"):
        convert(one_target(tmp_path, pico("llama"), "type: auto, size: 100kB"), work_dir=tmp_path / "x")


def test_another_pre_tokenizer_than_the_checkpoints_is_reported_when_the_recipe_names_it(recipe, tmp_path):
    overridden = {"{format: gguf, type: Q8_0}": "{format: gguf, type: Q8_0, tokenizer: {pre: gpt-2}}"}
    manifest = convert(recipe(**overridden), work_dir=tmp_path / "build")
    words = {target.type: check for target in manifest.targets for check in target.checks if check.check == "tokenizer"}
    assert (words["Q8_0"].verdict, words["Q4_K_M"].verdict) == ("report", "pass")
    assert "texts differ, first" in words["Q8_0"].summary


def calibrated(recipe, source, **changes):
    path = recipe(source=source, **changes)
    text = path.read_text().replace("type: Q8_0}", "type: Q4_0, imatrix: true}")
    path.write_text(text.replace("checks:", "calibration: {tokens: 512}\nchecks:"))
    return path


def test_an_encoder_is_held_to_its_embeddings(recipe, pico, tmp_path):
    gate = {"  perplexity: {chunks: 2, max_ratio: 2.0}\n  divergence: {max_mean: 1.0}": "  embedding: {min_cosine: 0.99}"}
    manifest = convert(calibrated(recipe, pico("bert"), **gate), work_dir=tmp_path / "build")
    for target in manifest.targets:
        assert [check.check for check in target.checks] == ["integrity", "tokenizer", "embedding", "latency"]
        assert target.checks[2].values["cosine"] > 0.99
        assert (target.samples, target.speed.decode_tokens_per_s) == ([], None)
    assert manifest.importance.tensors == 12
    assert "Cosine" in (tmp_path / "published" / "README.md").read_text()
    assert "Rank correlation" in (tmp_path / "published" / "report.html").read_text()


def test_an_encoder_decoder_is_held_to_its_decoder(recipe, pico, tmp_path):
    manifest = convert(calibrated(recipe, pico("t5-1.1")), work_dir=tmp_path / "build")
    for target in manifest.targets:
        names = ["integrity", "tokenizer", "perplexity", "divergence", "latency"]
        assert [check.check for check in target.checks] == names
        assert all(len(means) == 2 for check in target.checks for means in check.chunk_means.values())
        assert target.checks[3].values["tokens"] == 2 * 255
        assert target.speed.decode_tokens_per_s > 0
        assert [sample.prompt for sample in target.samples] == ["Hello"]


@pytest.mark.parametrize("name", ["bert", "t5-1.1"])
def test_cloze_is_asked_of_decoders_alone(recipe, pico, tmp_path, name):
    path = recipe(source=pico(name), **{"divergence:": "cloze: {min_ratio: 0.9}\n  divergence:"})
    missing = [item.message for item in quantkit.plan(path, work_dir=tmp_path / "build").missing]
    assert any(message.startswith("checks: cloze: min_ratio is not for a model of this kind") for message in missing)


def test_a_gate_that_a_kind_of_model_cannot_have_is_refused(recipe, pico, tmp_path):
    with pytest.raises(InputError, match=r"perplexity: max_ratio is not for .*\(encoder\).*\n.*divergence: max_mean"):
        convert(recipe(source=pico("bert")), work_dir=tmp_path / "build")
    embedding = {"divergence: {max_mean: 1.0}": "embedding: {min_rank: 0.9}"}
    with pytest.raises(InputError, match=r"embedding: min_rank is not for .*\(decoder\)"):
        convert(recipe(**embedding), work_dir=tmp_path / "build")
