"""The Hub, against a server on loopback that speaks the endpoints huggingface_hub uses.

Each case is a process of its own, as huggingface_hub reads its environment once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from checkpoints import shard

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_averysecrettoken"


class Hub(ThreadingHTTPServer):
    """Repositories by "models/org/name" or "datasets/org/name"; every answer to a GET is logged with its range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.log: list[tuple[str, str | None, int]] = []
        self.cut: set[str] = set()  # files whose next whole download breaks off half way


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            return self.listing("/".join(parts[1:4]), parts[4], parts[5])
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        return self.file(f"{kind}/{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def known(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The repository's files, or None after the answer that the Hub gives for what is not there."""
        if "gated" in repo:
            self.answer(403, b"", X_Error_Code="GatedRepo", X_Error_Message=f"for {SECRET}")
        elif repo not in self.server.repos:
            self.answer(401, b"", X_Error_Code="RepoNotFound")
        elif revision not in (COMMIT, "main"):
            self.answer(404, b"", X_Error_Code="RevisionNotFound")
        else:
            return self.server.repos[repo]
        return None

    def listing(self, repo: str, what: str, revision: str) -> None:
        if (files := self.known(repo, revision)) is None:
            return
        name = repo.partition("/")[2]
        found: Any = {"id": name, "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": []}
        found["siblings"] = [{"rfilename": file, "size": len(data), **large(file, data)} for file, data in files.items()]
        if what == "tree":
            found = [{"type": "file", "path": file, "size": len(data), "oid": "0"} for file, data in files.items()]
        self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def file(self, repo: str, revision: str, name: str) -> None:
        if (files := self.known(repo, revision)) is None:
            return
        if name not in files:
            self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        data, span = files[name], self.headers.get("Range")
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept_Ranges": "bytes"}
        status, body = 200, data
        if span:
            begin, _, end = span.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or len(data)), len(data) - 1)
            status, body = 206, data[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        if self.command == "GET" and not span and name in self.server.cut:
            self.server.cut.remove(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            body = data[: len(data) // 2]
        else:
            self.answer(status, body, **headers)
        if self.command == "GET":
            self.server.log.append((name, span, len(body)))


def large(file: str, data: bytes) -> dict[str, Any]:
    """What the Hub says beside of a file that git keeps apart."""
    if not file.endswith(".safetensors"):
        return {}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}


@pytest.fixture
def hub(pico: Callable[[str], Path]) -> Iterator[Hub]:
    server = Hub()
    folder = pico("llama")
    server.repos["models/org/pico"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.repos["models/org/pico"]["original/consolidated.pth"] = bytes(1000)
    server.repos["models/org/bare"] = {"README.md": b"nothing here"}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


_SCRIPT = """
import json, sys
from pathlib import Path
from huggingface_hub import constants
from quantkit import errors, source
constants.DOWNLOAD_CHUNK_SIZE = 1 << 20  # whole chunks outlive an interruption, and pico is smaller than one
uri, cache, fetch = sys.argv[1], Path(sys.argv[2]), len(sys.argv) > 3
try:
    found = source.describe(uri, cache=cache)
    shapes = {name: list(info.shape) for name, info in found.weights.infos.items()}
    out = {"commit": found.commit, "name": found.name, "repo": found.repo, "uri": found.uri, "shapes": shapes,
           "bytes": found.download_bytes, "licence": found.licence.id, "digests": {}, "steps": []}
    if fetch:
        steps = []
        found = source.fetch(found, lambda what, done, total: steps.append([what, done, total]))
        out |= {"digests": dict(found.digests), "steps": steps, "bytes": found.download_bytes,
                "sum": float(found.weights.read("model.norm.weight").sum())}
except errors.QuantkitError as error:
    out = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(out))
"""


def environment(hub: Hub, cache: Path, *, offline: bool = False) -> dict[str, str]:
    """Of a process that finds the Hub at the server's address."""
    return {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": SECRET,
        "HF_HOME": str(cache / "home"),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def run(hub: Hub, uri: str, cache: Path, *, fetch: bool = False, offline: bool = False) -> dict[str, Any]:
    """describe (and fetch) in a process of its own."""
    command = [sys.executable, "-c", _SCRIPT, uri, str(cache), *(["fetch"] if fetch else [])]
    around = environment(hub, cache, offline=offline)
    done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def weights(hub: Hub) -> bytes:
    return hub.repos["models/org/pico"]["model.safetensors"]


def test_describe_downloads_no_weight_and_pins_the_branch(hub: Hub, tmp_path: Path) -> None:
    found = run(hub, "hf://org/pico@main", tmp_path)
    assert (found["commit"], found["name"], found["repo"]) == (COMMIT, "pico llama", "org/pico")
    assert found["shapes"]["model.embed_tokens.weight"] == [512, 256]
    assert found["bytes"] == len(weights(hub))
    assert found["licence"] == "apache-2.0"
    assert [(span, size) for name, span, size in hub.log if name == "model.safetensors"] == [("bytes=0-100000", 100001)]
    assert not [name for name, _, _ in hub.log if "original" in name]


def test_fetch_then_offline_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    fetched = run(hub, "org/pico", tmp_path, fetch=True)
    assert fetched["digests"] == {"model.safetensors": hashlib.sha256(weights(hub)).hexdigest()}
    assert ["download model.safetensors", len(weights(hub)), len(weights(hub))] in fetched["steps"]
    asked = len(hub.log)
    offline = run(hub, "hf://org/pico@main", tmp_path, fetch=True, offline=True)
    assert len(hub.log) == asked
    assert (offline["commit"], offline["digests"], offline["sum"]) == (COMMIT, fetched["digests"], fetched["sum"])
    again = run(hub, f"hf://org/pico@{COMMIT}", tmp_path)
    assert again["bytes"] == 0


def test_an_interrupted_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.cut.add("model.safetensors")
    fetched = run(hub, "hf://org/pico", tmp_path, fetch=True)
    assert fetched["digests"] == {"model.safetensors": hashlib.sha256(weights(hub)).hexdigest()}
    half = len(weights(hub)) // 2
    kept = half // 2**20 * 2**20
    downloads = [(span, size) for name, span, size in hub.log if name == "model.safetensors"][1:]
    assert downloads == [(None, half), (f"bytes={kept}-", len(weights(hub)) - kept)]


def test_shards_are_declared_and_fetched(hub: Hub, pico: Callable[[str], Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(pico("llama"), tmp_path / "model"))
    shard(place)
    hub.repos["models/org/pico"] = {path.name: path.read_bytes() for path in place.iterdir()}
    found = run(hub, "hf://org/pico", tmp_path, fetch=True)
    assert len(found["shapes"]) == 20
    assert sorted(found["digests"]) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    del hub.repos["models/org/pico"]["model-00002-of-00002.safetensors"]
    lost = run(hub, "hf://org/pico", tmp_path / "other")
    assert "names shards that the repository lacks: model-00002-of-00002.safetensors" in lost["message"]


def test_a_quantised_checkpoint_is_planned_from_its_headers(hub: Hub, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load, save

    plain = run(hub, "hf://org/pico", tmp_path / "plain")
    files, tensors = hub.repos["models/org/pico"], {}
    for name, values in load(files["model.safetensors"]).items():
        if name.endswith("_proj.weight"):
            scale = values.abs().max() / 448
            tensors |= {name: (values / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
        else:
            tensors[name] = values
    files["model.safetensors"] = save(tensors, {"format": "pt"})
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), "quantization_config": said}).encode()
    hub.log.clear()
    found = run(hub, "hf://org/pico", tmp_path)
    assert found["shapes"] == plain["shapes"]
    assert [span for name, span, _ in hub.log if name == "model.safetensors"] == ["bytes=0-100000"]
    fetched = run(hub, "hf://org/pico", tmp_path, fetch=True)
    assert (fetched["shapes"], fetched["bytes"]) == (plain["shapes"], 0)


def test_pickled_weights_are_declared_by_transformers_model(hub: Hub, pico: Callable[[str], Path], tmp_path: Path) -> None:
    import io

    import torch
    from safetensors.torch import load_file

    data = io.BytesIO()
    torch.save(load_file(pico("llama") / "model.safetensors"), data)
    del hub.repos["models/org/pico"]["model.safetensors"]
    hub.repos["models/org/pico"]["pytorch_model.bin"] = data.getvalue()
    found = run(hub, "hf://org/pico", tmp_path, fetch=True)
    assert len(found["shapes"]) == 20
    assert list(found["digests"]) == ["pytorch_model.bin"]


def test_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    absent = run(hub, "hf://org/absent", tmp_path)
    assert absent["error"] == "SourceError"
    assert "no such repository, or a private one" in absent["message"]
    branch = run(hub, "hf://org/pico@v9", tmp_path)
    assert "no such branch, tag or commit" in branch["message"]
    bare = run(hub, "hf://org/bare", tmp_path)
    assert "it has no config.json" in bare["message"]


def test_gated_and_out_of_reach(hub: Hub, tmp_path: Path) -> None:
    gated = run(hub, "hf://org/gated", tmp_path)
    assert gated["error"] == "UnresolvedError"
    assert "is gated: accept its terms" in gated["message"]
    offline = run(hub, "hf://org/pico", tmp_path, offline=True)
    assert offline["error"] == "UnresolvedError"
    assert "not in the cache and the Hub is out of reach" in offline["message"]


def test_a_dataset_is_a_text(hub: Hub, tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(pa.table({"text": ["", " = A = \n", "", " words , and more \n"]}), data)
    hub.repos["datasets/org/wiki"] = {"raw/test-00000-of-00001.parquet": data.getvalue(), "README.md": b""}
    script = (
        "import sys; from pathlib import Path; from quantkit.source import text\n"
        "found = text.fetch(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "print(found.name, repr(found.path.read_text()))"
    )
    around = environment(hub, tmp_path)
    command = [
        sys.executable,
        "-c",
        script,
        "hf-dataset://org/wiki@main/raw/test?column=text",
        tmp_path / "out",
        tmp_path,
    ]
    for _ in range(2):  # on line, then from the cache
        done = subprocess.run(command, env=around, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        name, _, text = done.stdout.strip().partition(" ")
        assert name == f"hf-dataset://org/wiki@{COMMIT}/raw/test?column=text"
        assert text == repr(" \n = A = \n \n words , and more \n")
        around["HF_HUB_OFFLINE"] = "1"


def quantkit(hub: Hub, cache: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", *map(str, words)]
    around = environment(hub, cache)
    return subprocess.run(command, env=around, capture_output=True, text=True, timeout=300, check=False)


def test_a_lock_pins_a_branch_and_knows_its_files_before_they_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    recipe = tmp_path / "pico.yaml"
    recipe.write_text("source: hf://org/pico@main\ntargets: [{format: gguf, type: Q8_0}]\nchecks: false\n")
    refused = quantkit(hub, tmp_path, "run", recipe, "--locked", "--work-dir", tmp_path / "build")
    assert refused.returncode == 2
    assert "quantkit lock" in refused.stderr
    done = quantkit(hub, tmp_path, "lock", recipe, "--json")
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(weights(hub)).hexdigest()
    assert json.loads(done.stdout)["source"] == {
        "uri": "hf://org/pico@main", "pinned": f"hf://org/pico@{COMMIT}", "digests": {"model.safetensors": digest}
    }  # fmt: skip
    assert max(size for name, _, size in hub.log if name == "model.safetensors") < len(weights(hub))
    made = quantkit(hub, tmp_path, "run", recipe, "--locked", "--work-dir", tmp_path / "build", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["source"]["uri"] == f"hf://org/pico@{COMMIT}"
    assert (tmp_path / "build/pico/pico.lock").read_text() == (tmp_path / "pico.lock").read_text()


def test_inspect_downloads_no_weight_and_says_what_the_hub_does(hub: Hub, tmp_path: Path) -> None:
    done = quantkit(hub, tmp_path, "inspect", "org/pico", "--machine", "colab", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["commit"], found["likes"], found["gated"]) == (COMMIT, 0, None)
    assert found["download_bytes"] == len(weights(hub))
    assert max(size for name, _, size in hub.log if name == "model.safetensors") < len(weights(hub))
    gated = quantkit(hub, tmp_path, "inspect", "org/gated")
    assert gated.returncode == 4
    assert "accept its terms" in gated.stderr
