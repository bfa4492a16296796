"""A finished build, its gates passed, goes to every place of its recipe; one that did not pass goes nowhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import SECRET, Fault, WritableHub, running

import quantkit
from quantkit import publishing
from quantkit.errors import CheckFailed, InputError, UnresolvedError
from quantkit.manifest import Manifest
from quantkit.progress import silent


@pytest.fixture
def server() -> Iterator[WritableHub]:
    with running() as found:
        yield found


@pytest.fixture
def command(server: WritableHub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """quantkit in a process of its own, with the Hub at the server's address and a token."""
    settings = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": SECRET, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def run(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "quantkit", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, env=os.environ | settings | changes, check=False)
        assert SECRET not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def recipe(pico: Callable[[str], Path], tmp_path: Path) -> Path:
    """To the Hub and to a folder, in this order, checked by nobody."""
    path = tmp_path / "demo.yaml"
    path.write_text(
        f"source: {pico('llama')}\ntargets: [{{format: gguf, type: Q8_0}}]\nchecks: false\n"
        f"publish:\n  - {{hub: org/demo}}\n  - {{folder: {tmp_path / 'out'}}}\n"
    )
    return path


@pytest.fixture
def build(pico: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished build whose recipe names a folder, of a source with a licence file."""
    source = Path(shutil.copytree(pico("llama"), tmp_path / "source"))
    (source / "LICENSE").write_bytes("Terms\r\n© somebody\n".encode())
    quantkit.convert(source, type="Q8_0", out=tmp_path / "out", checks=False, work_dir=tmp_path / "build")
    return next((tmp_path / "build").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_run_that_got_half_way_is_finished(
    server: WritableHub, command: Callable[..., subprocess.CompletedProcess[str]], recipe: Path, tmp_path: Path
) -> None:
    work = tmp_path / "build" / "demo"
    server.faults.append(Fault("POST /api/repos/create", 403, times=99))
    stopped = command("run", recipe, "--work-dir", tmp_path / "build")
    assert stopped.returncode == 2
    assert "give a token with write access" in stopped.stderr
    first = contents(tmp_path / "out")
    assert Manifest.read(work / "manifest.json").published == []
    (work / ".lock").unlink()
    server.faults.clear()
    server.log.clear()

    outline = json.loads(command("publish", work, "--dry-run", "--json").stdout)
    assert outline["obstacles"] == []
    expected = {(str(tmp_path / "out"), name, len(data)) for name, data in first.items()}
    expected |= {("hf://org/demo@main", name, len(data)) for name, data in first.items()}
    assert {(each["destination"], each["file"], each["nbytes"]) for each in outline["pieces"]} == expected
    assert {each["how"] for each in outline["pieces"] if each["file"].endswith(".gguf")} == {"link", "lfs"}
    shown = command("publish", work, "--dry-run", HF_TOKEN="")
    assert "MISSING hf://org/demo: no token was found" in shown.stdout
    assert server.log == []
    assert Manifest.read(work / "manifest.json").published == []

    done = command("publish", work, "--json")
    assert done.returncode == 0, done.stderr
    addresses = {each["destination"]: each["address"] for each in json.loads(done.stdout)}
    repo = server.repos["org/demo"]
    assert list(addresses) == [str(tmp_path / "out"), "hf://org/demo@main"]
    assert addresses["hf://org/demo@main"] == f"{server.endpoint}/org/demo/commit/{repo.refs['main']}"
    assert contents(tmp_path / "out") == first
    assert {name: data for name, data in repo.at("main").items() if name != ".gitattributes"} == first
    manifest = Manifest.read(work / "manifest.json")
    assert manifest.published == ["hf://org/demo@main", str(tmp_path / "out")]
    name = manifest.source.name
    assert repo.messages[0]["summary"] == f"demo: {name} quantised by quantkit {quantkit.__version__}"
    again = command("publish", work)
    assert f"published to hf://org/demo@main: {addresses['hf://org/demo@main']}" in again.stdout
    assert len(repo.messages) == 1


def test_a_failed_gate_makes_no_request(
    server: WritableHub, command: Callable[..., subprocess.CompletedProcess[str]], recipe: Path, tmp_path: Path
) -> None:
    strict = "checks: {perplexity: {chunks: 2, max_ratio: 0.5}, latency: report, memory: {contexts: []}}"
    recipe.write_text(recipe.read_text().replace("checks: false", strict))
    done = command("run", recipe, "--work-dir", tmp_path / "build", "--threads", 1)
    assert done.returncode == 3, done.stderr
    assert "a check failed; nothing was published" in done.stderr
    done = command("publish", tmp_path / "build" / "demo")
    assert done.returncode == 3
    assert not (tmp_path / "out").exists()
    assert server.log == []


def test_a_run_without_a_token_stops_before_any_work(
    server: WritableHub, command: Callable[..., subprocess.CompletedProcess[str]], recipe: Path, tmp_path: Path
) -> None:
    done = command("run", recipe, "--work-dir", tmp_path / "build", HF_TOKEN="")
    assert (done.returncode, server.log) == (2, [])
    assert "no token was found: set HF_TOKEN" in done.stderr
    assert not list((tmp_path / "build").glob("demo/*.gguf"))


def test_a_build_is_held_against_its_manifest(build: Path, tmp_path: Path) -> None:
    artefact = next(build.glob("*.gguf"))
    data = artefact.read_bytes()
    artefact.unlink()
    artefact.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"{artefact.name} has {len(data) - 1} bytes, {len(data)} were built"):
        publishing.finish(build, silent)
    artefact.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{artefact.name} changed since it was built"):
        publishing.outline(build)
    artefact.unlink()
    with pytest.raises(InputError, match=f"{artefact.name} is missing"):
        publishing.finish(build, silent)
    artefact.write_bytes(data)
    assert publishing.finish(build, silent) == {str(tmp_path / "out"): str(tmp_path / "out")}


def test_licence_files_go_along(build: Path, tmp_path: Path) -> None:
    assert (tmp_path / "out" / "LICENSE").read_text() == "Terms\n© somebody\n"
    listed = {line.partition("  ")[2] for line in (build / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS"} == contents(tmp_path / "out").keys()
    assert {piece.file: piece.nbytes for piece in publishing.outline(build).pieces} == {
        name: len(data) for name, data in contents(tmp_path / "out").items()
    }
    before = contents(tmp_path / "out")
    publishing.finish(build, silent)
    assert contents(tmp_path / "out") == before
    (build / "LICENSE").write_text("other terms")
    with pytest.raises(InputError, match="LICENSE changed since it was built"):
        publishing.finish(build, silent)


@pytest.mark.parametrize(("verdict", "error"), [("fail", CheckFailed), ("unresolved", UnresolvedError)])
def test_only_what_passed_is_published(build: Path, verdict: str, error: type[Exception]) -> None:
    manifest = Manifest.read(build / "manifest.json")
    targets = [target.model_copy(update={"verdict": verdict}) for target in manifest.targets]
    (build / "manifest.json").write_text(manifest.model_copy(update={"targets": targets}).model_dump_json())
    for verb in (publishing.outline, lambda work: publishing.finish(work, silent)):
        with pytest.raises(error, match="nothing was published"):
            verb(build)


def test_what_is_no_build(tmp_path: Path, build: Path) -> None:
    with pytest.raises(InputError, match="is no finished build"):
        publishing.finish(tmp_path / "nothing", silent)
    assert not (tmp_path / "nothing").exists()
    manifest = Manifest.read(build / "manifest.json")
    record = manifest.recipe.model_copy(update={"text": manifest.recipe.text.partition("publish:")[0]})
    (build / "manifest.json").write_text(manifest.model_copy(update={"recipe": record}).model_dump_json())
    with pytest.raises(InputError, match="its recipe names no destination"):
        publishing.finish(build, silent)
    (build / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is no manifest of this quantkit's"):
        publishing.finish(build, silent)
