"""Publishing to the Hub, against a server on loopback: what arrives, what is not sent twice, and what never leaves."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from hub_server import SECRET, Fault, Repo, WritableHub, running
from huggingface_hub import constants

from quantkit.destinations import HubPublish
from quantkit.errors import InputError, QuantkitError, UnresolvedError
from quantkit.progress import silent
from quantkit.publish import hub
from quantkit.publish.folder import SUMS

MESSAGE = "demo: org/base quantised by quantkit 0.1.0\nSource: hf://org/base@main at commit 0123"
PLACE = HubPublish(hub="org/demo")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for, had anybody waited."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WritableHub]:
    with running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", found.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", SECRET)
        yield found


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """build(name=content, ...) -> files to publish, with their sums; `a__gguf` is a.gguf."""

    def make(**contents: str) -> dict[str, Path]:
        wanted = {"README__md": "---\nlicense: mit\n---\n", "manifest__json": '{"quantkit": "0.1.0"}', "a__gguf": "GGUF" * 999}
        files = {}
        for name, text in (wanted | contents).items():
            path = files[name.replace("__", ".")] = tmp_path / "build" / name.replace("__", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in sorted(files.items())]
        (tmp_path / "build" / SUMS).write_text("".join(sums))
        return files | {SUMS: tmp_path / "build" / SUMS}

    return make


def publish(files: dict[str, Path], place: HubPublish = PLACE) -> str:
    return hub.publish(files, place, message=MESSAGE, progress=silent)


def content(files: dict[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files.items()}


def held(repo: Repo, ref: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in repo.at(ref).items() if name != ".gitattributes"}


def test_a_repository_is_made_and_gets_one_commit(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    files, steps = build(b__gguf="other" * 500), []
    address = hub.publish(files, PLACE, message=MESSAGE, progress=lambda *step: steps.append(step))
    repo = server.repos["org/demo"]
    assert repo.private
    assert held(repo) == content(files)
    assert address == f"{server.endpoint}/org/demo/commit/{repo.refs['main']}"
    assert [(each["summary"], each["description"]) for each in repo.messages] == [tuple(MESSAGE.split("\n"))]
    assert len(server.asked("PUT /large/")) == 2
    total = sum(path.stat().st_size for path in files.values())
    assert (steps[0], steps[-1]) == (("publish to org/demo", 0, total), ("publish to org/demo", total, total))


def test_the_same_again_is_no_commit_and_a_change_sends_what_changed(
    server: WritableHub, build: Callable[..., dict[str, Path]]
) -> None:
    first = publish(build(b__gguf="other" * 500))
    server.log.clear()
    assert publish(build(b__gguf="other" * 500)) == first
    assert server.log == ["GET /api/models/org/demo/revision/main"]
    files = build(b__gguf="changed" * 500)
    assert publish(files) != first
    assert server.asked("PUT") == [f"PUT /large/{hashlib.sha256(files['b.gguf'].read_bytes()).hexdigest()}"]
    assert held(server.repos["org/demo"]) == content(files)
    assert len(server.repos["org/demo"].messages) == 2


def test_a_public_repository_stays_public(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    publish(build(), HubPublish(hub="org/demo", private=False))
    publish(build(a__gguf="GGUF2"), HubPublish(hub="org/demo", private=True))
    assert not server.repos["org/demo"].private
    assert len(server.asked("repos/create")) == 1
    assert not server.asked("settings")


def test_a_branch_is_made_and_main_left_alone(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    files = build()
    publish(files, HubPublish(hub="org/demo", branch="v2/q4"))
    assert held(server.repos["org/demo"]) == {}
    assert held(server.repos["org/demo"], "v2/q4") == content(files)


def test_a_pull_request_is_opened_once_and_then_brought_up_to_date(
    server: WritableHub, build: Callable[..., dict[str, Path]]
) -> None:
    place = HubPublish(hub="org/demo", pull_request=True)
    address = publish(build(), place)
    assert address == f"{server.endpoint}/org/demo/discussions/1"
    repo = server.repos["org/demo"]
    assert (held(repo), held(repo, "refs/pr/1")) == ({}, content(build()))
    assert publish(build(), place) == address
    assert len(repo.messages) == 1
    files = build(a__gguf="GGUF2")
    assert publish(files, place) == address
    assert held(repo, "refs/pr/1") == content(files)
    repo.proposals[0]["author"]["name"] = "a stranger"
    assert publish(files, place).endswith("/discussions/2")
    branch = HubPublish(hub="org/demo", pull_request=True, branch="v2")
    assert publish(files, branch).endswith("/discussions/3")
    assert publish(files, branch).endswith("/discussions/3")


def test_stale_files_of_ours_go_and_others_stay(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    publish(build(old__gguf="old" * 99, old__txt="old"))
    repo = server.repos["org/demo"]
    repo.commit("main", repo.at("main") | {"theirs.txt": b"somebody's"})
    for path in ("old.gguf", "old.txt"):
        (build()["a.gguf"].parent / path).unlink()
    files = build()
    publish(files)
    assert held(repo) == content(files) | {"theirs.txt": b"somebody's"}
    assert len(repo.messages) == 2


def test_sums_that_are_not_ours_remove_nothing(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    files = build()
    repo = server.repos["org/demo"] = Repo(private=False)
    theirs = {"weights.gguf": b"theirs", "manifest.json": b"[]", SUMS: b"00  weights.gguf\n00  manifest.json\n"}
    repo.commit("main", theirs)
    publish(files)
    assert held(repo) == content(files) | {"weights.gguf": b"theirs"}


def test_a_file_that_somebody_replaced_stays(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    publish(build(old__gguf="old" * 99))
    repo = server.repos["org/demo"]
    repo.commit("main", repo.at("main") | {"old.gguf": b"replaced"})
    publish(build())
    assert held(repo)["old.gguf"] == b"replaced"


@pytest.mark.parametrize(
    "request_",
    ["POST /api/repos/create", "GET .*/revision/", "POST .*/preupload/", "POST .*batch", "PUT /large", "POST .*/commit/"],
)
def test_a_server_error_is_tried_again(
    server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float], request_: str
) -> None:
    server.faults.append(Fault(request_, 503))
    publish(build())
    assert held(server.repos["org/demo"]) == content(build())
    assert len(server.repos["org/demo"].messages) == 1
    assert pauses == [1.0]


@pytest.mark.parametrize("proposing", [False, True])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float], proposing: bool
) -> None:
    server.faults.append(Fault("POST .*/commit/", 502, after=True))
    publish(build(), HubPublish(hub="org/demo", pull_request=proposing))
    repo = server.repos["org/demo"]
    assert len(repo.messages) == 1
    assert held(repo, "refs/pr/1" if proposing else "main") == content(build())
    assert pauses == [1.0]


def test_what_arrived_before_a_publish_broke_off_is_not_sent_again(
    server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float]
) -> None:
    server.faults.append(Fault("POST .*/commit/", 500, times=5))
    with pytest.raises(UnresolvedError, match="files that arrived are not sent twice"):
        publish(build())
    assert (len(server.asked("PUT")), len(pauses), held(server.repos["org/demo"])) == (1, 4, {})
    publish(build())
    assert len(server.asked("PUT")) == 1
    assert held(server.repos["org/demo"]) == content(build())


def test_tries_end(server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float]) -> None:
    server.faults.append(Fault("GET .*/revision/", 500, times=99))
    with pytest.raises(UnresolvedError, match=r"hf://org/demo@main: the Hub answered 500; publish again"):
        publish(build())
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert len(server.log) == 5


def test_nobody_there(
    server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnresolvedError, match="the Hub did not answer"):
        publish(build())
    assert (len(pauses), server.log) == (4, [])


def test_the_hub_says_how_long_to_wait(server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float]) -> None:
    server.faults.append(Fault("GET .*/revision/", 429, {"Retry_After": "37"}))
    server.faults.append(Fault("POST .*/commit/", 429, {"RateLimit": '"api";r=0;t=55'}))
    publish(build())
    assert pauses == [37.0, 55.0]
    server.faults.append(Fault("GET .*/revision/", 429, {"Retry_After": formatdate(time.time() + 90, usegmt=True)}))
    publish(build())
    assert 80 < pauses[2] <= 90
    server.faults.append(Fault("GET .*/revision/", 429, {"Retry_After": "86400"}))
    with pytest.raises(UnresolvedError, match="the Hub answered 429"):
        publish(build())
    assert len(pauses) == 3


def test_a_branch_that_moves_meanwhile_is_looked_at_again(
    server: WritableHub, build: Callable[..., dict[str, Path]], pauses: list[float]
) -> None:
    publish(build())
    server.faults.append(Fault("POST .*/commit/", 412))
    publish(build(a__gguf="GGUF2"))
    assert held(server.repos["org/demo"])["a.gguf"] == b"GGUF2"
    assert pauses == [1.0]


@pytest.mark.parametrize(
    ("request_", "status", "headers", "says"),
    [
        (
            "GET .*/revision/",
            401,
            {"X_Error_Message": "Invalid credentials in Authorization header"},
            "does not accept the token",
        ),
        ("POST /api/repos/create", 401, {}, "does not accept the token"),
        ("POST /api/repos/create", 403, {}, "a token with write access .* whose account may write for org"),
        ("POST .*/commit/", 403, {}, "a token with write access .* or use pull_request: true: storage is used up"),
        ("PUT /large", 403, {}, "a token with write access"),
        ("GET .*/revision/", 403, {"X_Error_Code": "GatedRepo"}, "is gated: accept its terms"),
        ("POST /api/validate-yaml", 400, {}, r"refused what was sent .*Invalid metadata in README.md. - no such licence"),
    ],
)
def test_what_the_user_must_mend_is_said_at_once(
    server: WritableHub,
    build: Callable[..., dict[str, Path]],
    pauses: list[float],
    request_: str,
    status: int,
    headers: dict[str, str],
    says: str,
) -> None:
    body = {"error": f"storage is used up by {SECRET}", "errors": [{"message": "no such licence"}]}
    server.faults.append(Fault(request_, status, headers, body, times=99))
    with pytest.raises(InputError, match=says):
        publish(build())
    assert pauses == []
    assert not server.repos.get("org/demo", Repo(True)).messages


def test_an_organisation_that_is_not_there(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    with pytest.raises(InputError, match="the Hub has no user or organisation nobody"):
        publish(build(), HubPublish(hub="nobody/demo"))
    assert len(server.log) == 2


def test_a_file_that_the_hub_leaves_out_is_noticed(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    server.ignored.add("a.gguf")
    with pytest.raises(InputError, match=r"differs in a\.gguf; is one of them named by a \.gitignore"):
        publish(build())


def test_a_file_that_changed_is_not_sent(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    files = build()
    files["a.gguf"].write_text("GGUF, but another")
    with pytest.raises(InputError, match=r"a\.gguf changed since it was built"):
        publish(files)
    assert server.log == []


def test_obstacles_are_seen_without_the_network(
    server: WritableHub, build: Callable[..., dict[str, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert hub.obstacle(PLACE) is None
    assert "is named org/name" in str(hub.obstacle(HubPublish(hub="org/a..b")))
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN to one with write access, or run `hf auth login`" in str(hub.obstacle(PLACE))
    with pytest.raises(InputError, match="no token was found"):
        publish(build())
    (tmp_path / "no-token").write_text(SECRET)
    assert hub.obstacle(PLACE) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in str(hub.obstacle(PLACE))
    with pytest.raises(UnresolvedError, match="HF_HUB_OFFLINE is set"):
        publish(build())
    assert server.log == []


def test_a_plan_makes_no_request(server: WritableHub, build: Callable[..., dict[str, Path]]) -> None:
    files = build()
    files["codes.dat"] = files["a.gguf"].with_name("codes.dat")
    files["codes.dat"].write_bytes(b"\1\0\2")
    how = {name: (nbytes, how) for name, nbytes, how in hub.plan(files, PLACE)}
    assert how["a.gguf"] == (3996, "lfs")
    assert how["codes.dat"] == (3, "lfs")
    assert how["README.md"] == (files["README.md"].stat().st_size, "regular")
    assert server.log == []


@pytest.mark.parametrize("status", [None, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("request_", ["GET .*/revision/", "POST .*/create", "PUT /large", "POST .*/commit/"])
def test_the_token_is_never_said(
    server: WritableHub,
    build: Callable[..., dict[str, Path]],
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    request_: str,
    status: int | None,
) -> None:
    """Even by a Hub that says it: its words come into messages."""
    caplog.set_level(logging.DEBUG)
    told = ""
    if status is not None:
        body = {"error": f"Authorization: Bearer {SECRET}"}
        server.faults.append(Fault(request_, status, {}, body, times=99))
        with pytest.raises(QuantkitError) as raised:
            publish(build())
        told = "".join(traceback.format_exception(raised.value)) + repr(raised.value.__context__)
        assert "***" in str(raised.value) or status == 429 or request_.startswith("PUT")
    else:
        publish(build())
    captured = capfd.readouterr()
    logged = "\n".join([*(record.getMessage() for record in caplog.records), *(str(record.args) for record in caplog.records)])
    assert caplog.records
    for text in (told, logged, captured.out, captured.err, json.dumps(content_of(server))):
        assert SECRET not in text
    del pauses


def content_of(server: WritableHub) -> list[str]:
    """Every text that the repositories hold."""
    return [data.decode() for repo in server.repos.values() for files in repo.commits.values() for data in files.values()]
