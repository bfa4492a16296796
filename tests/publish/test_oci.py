"""Publishing into an OCI registry: what is pushed can be pulled, once, and whole; failures end well or are told."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from publish.registries import PASSWORD, USER, Desk, cutting, docker_registry, pull, small_registry
from report.sample_manifest import sample

import quantkit
from quantkit.destinations import OciPublish
from quantkit.errors import InputError, UnresolvedError
from quantkit.manifest import FileRecord, Manifest
from quantkit.progress import silent
from quantkit.publish import oci, packages
from quantkit.publish.credentials import basic

LICENCE = "Apache License\nVersion 2.0\n"
MANIFEST = packages.MANIFEST


@dataclass
class Build:
    files: dict[str, Path]
    manifest: Manifest
    licences: tuple[str, ...] = ("LICENSE",)


def build(folder: Path, *types: str, parts: int = 1, floats: int = 50_000, **source: Any) -> Build:
    """A build of small GGUF files of the given types, with its documents."""
    folder.mkdir(exist_ok=True)
    manifest, files, targets = sample(), {}, []
    for number, type in enumerate(types):
        records = []
        for part in range(parts):
            path = folder / f"Sample-{type}-{part}.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            writer.add_name("Sample")
            writer.add_bool("sample.flag", True)
            writer.add_array("tokenizer.ggml.tokens", [str(token) for token in range(50)])
            writer.add_array("sample.short", [1, 2, 3])
            writer.add_tensor("t", np.random.default_rng([number, part]).normal(size=floats).astype(np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            files[path.name] = path
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            records.append(FileRecord(name=path.name, nbytes=path.stat().st_size, sha256=sha256))
        verdict = "pass" if type != "Q2_K" else "unchecked"
        change = {"name": f"gguf-{type}", "type": type, "files": records, "verdict": verdict}
        targets.append(manifest.targets[0].model_copy(update=change))
    for name, text in (("LICENSE", LICENCE), ("README.md", "card"), ("manifest.json", "{}"), ("SHA256SUMS", "sums")):
        files[name] = folder / name
        files[name].write_text(text)
    source = {"commit": "c0ffee", **source}
    update = {"targets": targets, "source": manifest.source.model_copy(update=source)}
    return Build(files, manifest.model_copy(update=update))


def publish(build: Build, host: str, name: str = "team/model:1.0", layout: str = "docker", **how: Any) -> str:
    to = OciPublish(oci=f"{host}/{name}", layout=layout, plain_http=True)
    how = {"pauses": (0.0,) * 4, "progress": silent, **how}
    return oci.publish(build.files, build.licences, build.manifest, to, **how)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests, and no proxy before the loopback."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nowhere"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("QUANTKIT_OCI_USER", "QUANTKIT_OCI_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        if host is None:
            pytest.skip("docker-registry is not installed: make setup-system")
        yield host


@pytest.fixture
def desk() -> Iterator[Desk]:
    with small_registry(Desk()) as desk:
        yield desk


def pulled(host: str, name: str, tag: str) -> tuple[dict[str, Any], dict[str, Any], list[bytes]]:
    """Manifest, config and layers as a client pulls them, every digest and size checked."""
    manifest = json.loads(pull(host, f"{name}/manifests/{tag}", MANIFEST))
    contents = []
    for part in (manifest["config"], *manifest["layers"]):
        content = pull(host, f"{name}/blobs/{part['digest']}")
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == part["digest"]
        assert len(content) == part["size"]
        contents.append(content)
    return manifest, json.loads(contents[0]), contents[1:]


def test_docker_layout_is_pulled_as_it_was_built(registry: str, tmp_path: Path) -> None:
    made = build(tmp_path, "Q4_K_M")
    said = publish(made, registry, "team/docker:1.0")
    manifest, config, layers = pulled(registry, "team/docker", "1.0")
    raw = pull(registry, f"team/docker/manifests/{said.partition('@')[2]}", MANIFEST)
    assert said == f"{registry}/team/docker@sha256:{hashlib.sha256(raw).hexdigest()}"
    assert (manifest["schemaVersion"], manifest["mediaType"]) == (2, MANIFEST)
    assert "artifactType" not in manifest
    assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        "application/vnd.docker.ai.gguf.v3",
        "application/vnd.docker.ai.license",
    ]
    assert layers == [made.files["Sample-Q4_K_M-0.gguf"].read_bytes(), LICENCE.encode()]
    told = config["config"]
    assert told | {"gguf": 0} == {
        "format": "gguf",
        "format_version": "3",
        "quantization": "Q4_K_M",
        "parameters": "134.52 M",
        "architecture": "llama",
        "size": str(len(layers[0])),
        "gguf": 0,
    }
    assert told["gguf"]["general.architecture"] == "llama"
    assert told["gguf"]["sample.flag"] == "true"
    assert told["gguf"]["sample.short"] == "1, 2, 3"
    assert "tokenizer.ggml.tokens" not in told["gguf"]
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert config["rootfs"] == {"type": "rootfs", "diff_ids": digests}
    assert [file["diffID"] for file in config["files"]] == digests
    assert config["descriptor"]["created"] == made.manifest.created
    said_of_it = {key.removeprefix("org.opencontainers.image."): value for key, value in manifest["annotations"].items()}
    assert said_of_it["source"] == made.manifest.source.uri
    assert (said_of_it["licenses"], said_of_it["revision"]) == ("Apache-2.0", "c0ffee")
    assert said_of_it["created"] == made.manifest.created


def test_modelpack_layout_has_the_documents(registry: str, tmp_path: Path) -> None:
    made = build(tmp_path, "Q4_K_M")
    publish(made, registry, "team/pack:1.0", "modelpack")
    manifest, config, layers = pulled(registry, "team/pack", "1.0")
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    names = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
    assert names == ["Sample-Q4_K_M-0.gguf", "README.md", "manifest.json", "SHA256SUMS", "LICENSE"]
    assert [layer["mediaType"].split(".")[3] for layer in manifest["layers"]] == ["weight", *["doc"] * 4]
    assert {layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]} == {"raw"}
    assert layers == [made.files[name].read_bytes() for name in names]
    assert config["descriptor"] == {
        "createdAt": made.manifest.created,
        "family": "llama",
        "name": "Sample 135M Instruct",
        "sourceURL": made.manifest.source.uri,
        "revision": "c0ffee",
        "licenses": ["Apache-2.0"],
        "title": "Sample 135M Instruct Q4_K_M",
    }
    assert config["config"] == {
        "architecture": "transformer",
        "format": "gguf",
        "paramSize": "134.5m",
        "quantization": "Q4_K_M",
    }
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}


def test_each_gguf_has_a_tag_and_the_first_that_passed_the_plain_one(registry: str, tmp_path: Path) -> None:
    made = build(tmp_path, "Q2_K", "Q4_K_M", "F16")
    publish(made, registry, "team/several:v2")
    assert set(json.loads(pull(registry, "team/several/tags/list"))["tags"]) == {"v2", "v2-q2_k", "v2-q4_k_m", "v2-f16"}
    manifests = {
        tag: pull(registry, f"team/several/manifests/{tag}", MANIFEST) for tag in ("v2", "v2-q2_k", "v2-q4_k_m", "v2-f16")
    }
    assert manifests["v2"] == manifests["v2-q4_k_m"]
    assert len(set(manifests.values())) == 3


def test_parts_of_a_split_gguf_are_layers_in_their_order(registry: str, tmp_path: Path) -> None:
    made = build(tmp_path, "Q4_K_M", parts=3)
    publish(made, registry, "team/parts:1")
    manifest, config, layers = pulled(registry, "team/parts", "1")
    assert layers[:3] == [made.files[f"Sample-Q4_K_M-{part}.gguf"].read_bytes() for part in range(3)]
    assert config["config"]["size"] == str(sum(len(layer) for layer in layers[:3]))
    assert [layer["mediaType"] for layer in manifest["layers"]].count("application/vnd.docker.ai.gguf.v3") == 3


def test_large_blobs_go_in_chunks(registry: str, tmp_path: Path) -> None:
    made, seen = build(tmp_path, "Q4_K_M"), []
    publish(made, registry, "team/chunks:1", chunk=70_000, progress=lambda *step: seen.append(step))
    assert pulled(registry, "team/chunks", "1")[2][0] == made.files["Sample-Q4_K_M-0.gguf"].read_bytes()
    steps = [done for what, done, _ in seen if what == "pushing Sample-Q4_K_M-0.gguf"]
    assert steps[:2] == [70_000, 140_000]


def test_the_real_registry_gets_everything_after_a_broken_chunk(registry: str, tmp_path: Path) -> None:
    made = build(tmp_path, "Q4_K_M")
    with cutting(registry, after=100_000) as host:
        publish(made, host, "team/broken:1", chunk=150_000)
    assert pulled(registry, "team/broken", "1")[2][0] == made.files["Sample-Q4_K_M-0.gguf"].read_bytes()


def test_a_real_registry_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path / "build", "Q4_K_M")
    with docker_registry(tmp_path, closed=True) as host:
        if host is None:
            pytest.skip("docker-registry is not installed: make setup-system")
        with pytest.raises(InputError, match="status 401: it was given no credentials"):
            publish(made, host)
        stored = {"auths": {f"http://{host}/v1/": {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}}
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps(stored))
        assert publish(made, host).startswith(f"{host}/team/model@sha256:")


def test_tls_is_spoken_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to serve")
    made, how = build(tmp_path / "build", "Q4_K_M"), {"progress": silent, "pauses": ()}
    with docker_registry(tmp_path, tls=True) as host:
        to = OciPublish(oci=f"{host}/team/model:1.0")
        with pytest.raises(InputError, match=r"its certificate is not trusted .* SSL_CERT_FILE"):
            oci.publish(made.files, made.licences, made.manifest, to, **how)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert oci.publish(made.files, made.licences, made.manifest, to, **how).startswith(f"{host}/team/model@sha256:")
    with pytest.raises(InputError, match="does not speak TLS: plain_http: true"):
        oci.publish(made.files, made.licences, made.manifest, OciPublish(oci=f"{registry}/team/model:1.0"), **how)


@pytest.mark.parametrize("layout", ["docker", "modelpack"])
def test_the_same_again_sends_no_blob_and_gives_the_same_digest(desk: Desk, tmp_path: Path, layout: str) -> None:
    made = build(tmp_path, "Q4_K_M", "F16")
    first = publish(made, desk.host, layout=layout)
    kept = dict(desk.manifests)
    desk.asked.clear()
    assert publish(made, desk.host, layout=layout) == first
    assert desk.manifests == kept
    assert {method for method, path in desk.asked if "/blobs/" in path} == {"HEAD"}


def test_no_tag_before_every_blob(desk: Desk, tmp_path: Path) -> None:
    publish(build(tmp_path, "Q4_K_M", "F16"), desk.host)
    tagging = ["/manifests/" in path for _, path in desk.asked]
    assert tagging == sorted(tagging)
    assert [path.rpartition("/")[2] for _, path in desk.asked if "/manifests/" in path] == ["1.0-q4_k_m", "1.0-f16", "1.0"]


def test_a_failure_leaves_no_tag(desk: Desk, tmp_path: Path) -> None:
    desk.fault = lambda method, path: 503 if method == "PUT" and "/blobs/" in path else None
    with pytest.raises(UnresolvedError, match=r"failed 5 times, last by status 503, DENIED: see that the registry is up"):
        publish(build(tmp_path, "Q4_K_M"), desk.host)
    assert not desk.manifests


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH"])
def test_what_fails_once_is_tried_again(desk: Desk, tmp_path: Path, method: str, status: int) -> None:
    failed: list[str] = []

    def once(asked: str, path: str) -> int | None:
        if asked != method or failed:
            return None
        failed.append(path)
        return status

    desk.fault = once
    made = build(tmp_path, "Q4_K_M")
    publish(made, desk.host, chunk=90_000)
    assert failed
    assert made.files["Sample-Q4_K_M-0.gguf"].read_bytes() in desk.blobs.values()
    assert "1.0" in desk.manifests


def test_a_broken_chunk_goes_on_from_where_it_broke(desk: Desk, tmp_path: Path) -> None:
    cut: list[str] = []

    def second_chunk(method: str, path: str) -> str | None:
        if method != "PATCH":
            return None
        cut.append(path)
        return "cut" if len(cut) == 2 else None

    desk.fault = second_chunk
    made = build(tmp_path, "Q4_K_M")
    publish(made, desk.host, chunk=50_000)
    content = made.files["Sample-Q4_K_M-0.gguf"].read_bytes()
    assert content in desk.blobs.values()
    assert len([1 for method, path in desk.asked if method == "GET" and "upload-0" in path]) == 1
    assert len(cut) == 1 + math.ceil((len(content) - 50_000 - 25_000) / 50_000) + 1
    assert len([1 for method, _ in desk.asked if method == "POST"]) == 3  # one for each blob, none anew


def test_the_token_dance(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.token = "t0ken"
    monkeypatch.setenv("QUANTKIT_OCI_USER", USER)
    monkeypatch.setenv("QUANTKIT_OCI_PASSWORD", PASSWORD)
    publish(build(tmp_path, "Q4_K_M"), desk.host)
    tokens = [path for path, _ in desk.sent if path.startswith("/token")]
    assert tokens == ["/token?service=tests&scope=repository%3Aa%2Fb%3Apull%2Cpush"]
    assert {said for path, said in desk.sent if not path.startswith("/token")} == {None, "Bearer t0ken"}
    assert "1.0" in desk.manifests


def test_a_token_that_ends_is_asked_for_again(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.token = "first"
    monkeypatch.setenv("QUANTKIT_OCI_USER", USER)
    monkeypatch.setenv("QUANTKIT_OCI_PASSWORD", PASSWORD)

    def ends(method: str, _: str) -> None:
        desk.token = "second" if method == "PATCH" else desk.token

    desk.fault = ends
    publish(build(tmp_path, "Q4_K_M"), desk.host, chunk=50_000)
    assert len([path for path, _ in desk.sent if path.startswith("/token")]) == 2
    assert "1.0" in desk.manifests


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_say_the_remedy_and_no_secret(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("QUANTKIT_OCI_USER", USER)
    monkeypatch.setenv("QUANTKIT_OCI_PASSWORD", PASSWORD)
    desk.token = "t0ken"
    desk.fault = lambda method, _: status if method == "POST" else None
    with pytest.raises(InputError) as caught:
        publish(build(tmp_path, "Q4_K_M"), desk.host)
    said = str(caught.value)
    assert f"status {status}, DENIED: the credentials that it was given do not allow it. Log in" in said
    assert not any(secret in said for secret in (PASSWORD, "t0ken", "c29tZW9uZTpzM2NyZXQtcGFzcw==", "_state"))


def test_without_credentials_a_closed_registry_says_so(desk: Desk, tmp_path: Path) -> None:
    desk.token = "t0ken"
    with pytest.raises(InputError, match=r"status 401: it was given no credentials\. Log in .* or set QUANTKIT_OCI_USER"):
        publish(build(tmp_path, "Q4_K_M"), desk.host)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnresolvedError, match=r"failed 5 times, last by .*: see that the registry is up"):
        publish(build(tmp_path, "Q4_K_M"), "127.0.0.1:9")


def test_a_file_that_changed_since_it_was_built(desk: Desk, tmp_path: Path) -> None:
    made = build(tmp_path, "Q4_K_M")
    path = made.files["Sample-Q4_K_M-0.gguf"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="DIGEST_INVALID: it has another digest than its build stated"):
        publish(made, desk.host)
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"Sample-Q4_K_M-0\.gguf changed since it was built"):
        publish(made, desk.host)
    assert not desk.manifests


def recipe(folder: Path, source: Path, host: str, target: str) -> Path:
    path = folder / "pico.yaml"
    path.write_text(
        f"source: {source}\ntargets: [{target}]\nchecks: false\npublish:\n"
        f"  - {{oci: '{host}/team/pico:1', plain_http: true, layout: modelpack}}\n"
    )
    return path


def test_a_recipe_publishes_its_gguf(desk: Desk, tmp_path: Path, pico: Callable[[str], Path]) -> None:
    work = tmp_path / "build"
    path = recipe(tmp_path, pico("llama"), desk.host, "{format: gguf, type: Q8_0}")
    manifest = quantkit.convert(path, work_dir=work, threads=1)
    assert manifest.published == [f"oci://{desk.host}/team/pico:1"]
    layers = json.loads(desk.manifests["1"])["layers"]
    named = {layer["annotations"]["org.cncf.model.filepath"]: layer["digest"] for layer in layers}
    assert list(named) == [manifest.targets[0].file, "README.md", "manifest.json", "SHA256SUMS", "LICENSE"]
    assert {name: desk.blobs[digest] for name, digest in named.items()} == {
        name: (work / "pico" / name).read_bytes() for name in named
    }
    assert f'LICENSE """{desk.blobs[named["LICENSE"]].decode()}"""' in (work / "pico" / "Modelfile").read_text()


def test_a_recipe_without_a_gguf_is_refused_before_any_work(tmp_path: Path, pico: Callable[[str], Path]) -> None:
    path = recipe(tmp_path, pico("llama"), "127.0.0.1:9", "{format: onnx, bits: 8}")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/team/pico:1: the recipe makes no GGUF to push: add a target"):
        quantkit.convert(path, work_dir=tmp_path / "build", threads=1)
    assert not (tmp_path / "build" / "pico" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("registry.example/team/model:1.0", None),
        ("localhost/model:latest", None),
        ("registry:5000/a.b__c-d/e:V1_x", None),
        ("registry.example/model", "no reference that can be pushed to"),
        ("team/model:1.0", "no reference that can be pushed to"),
        ("registry.example/Team/model:1.0", "no reference that can be pushed to"),
        ("registry.example/model:-x", "no reference that can be pushed to"),
        ("registry.example/a//b:1", "no reference that can be pushed to"),
        ("registry.example/model@sha256:" + "0" * 64, "a digest names what is there already"),
        ("registry.example/" + "a" * 250 + ":1", "of 255; shorten them"),
        ("registry.example/a:" + "t" * 129, "the tag has 129 characters, of 128"),
    ],
)
def test_references(text: str, fault: str | None) -> None:
    found = oci.obstacle(OciPublish(oci=text), ["Q4_K_M"])
    assert (found is None) if fault is None else (fault in str(found))


def test_recipes_that_cannot_be_pushed() -> None:
    to = OciPublish(oci="registry.example/a:" + "t" * 125)
    assert "the recipe makes no GGUF to push" in str(oci.obstacle(to, []))
    assert oci.obstacle(to, ["Q4_K_M"]) is None
    assert "-q4_k_m has 132 characters, of 128" in str(oci.obstacle(to, ["Q4_K_M", "Q8_0"]))
    assert "-q4_k_m-gptq has 137 characters, of 128" in str(oci.obstacle(to, ["Q4_K_M", "Q4_K_M gptq"]))


@pytest.mark.parametrize(
    ("licence", "name", "expected"),
    [
        ("apache-2.0", None, "Apache-2.0"),
        ("llama3.1", None, "LicenseRef-llama3.1"),
        ("other", "A licence/2", "LicenseRef-A-licence-2"),
        ("other", None, None),
        (None, None, None),
    ],
)
def test_licences_as_spdx(licence: str | None, name: str | None, expected: str | None) -> None:
    assert packages.spdx(sample().source.model_copy(update={"licence": licence, "licence_name": name})) == expected


def test_credentials(tmp_path: Path) -> None:
    known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert basic("r.example", {}, tmp_path) is None
    assert basic("r.example", {"QUANTKIT_OCI_USER": USER, "QUANTKIT_OCI_PASSWORD": PASSWORD}, tmp_path) == known
    with pytest.raises(InputError, match="QUANTKIT_OCI_PASSWORD is not set"):
        basic("r.example", {"QUANTKIT_OCI_USER": USER}, tmp_path)
    (tmp_path / ".docker").mkdir()
    path = tmp_path / ".docker" / "config.json"
    path.write_text(
        json.dumps(
            {"auths": {"https://R.example/v1/": {"auth": known}, "s.example:5": {"username": USER, "password": PASSWORD}}}
        )
    )
    assert basic("r.example", {}, tmp_path) == known
    assert basic("s.example:5", {}, tmp_path) == known
    assert basic("s.example", {}, tmp_path) is None
    path.write_text("{" + known)
    with pytest.raises(InputError, match="cannot be read") as caught:
        basic("r.example", {}, tmp_path)
    assert known not in str(caught.value)
