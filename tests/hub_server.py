"""A server on loopback that answers as the Hub does to whoever writes to it; what it received can be looked at."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SECRET = "hf_averysecrettokenthatwrites"
ACCOUNT = "somebody"
LFS_SUFFIX = ".gguf"


@dataclass
class Repo:
    """commits: sha -> files in force; refs: branch or refs/pr/N -> sha; messages: of each commit, in order."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    proposals: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{ref}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def at(self, ref: str) -> dict[str, bytes]:
        return self.commits[self.refs[ref]]


@dataclass
class Fault:
    """The next `times` requests whose "METHOD path" matches are answered so; the request is carried out if `after` says."""

    request: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    times: int = 1
    after: bool = False


class WritableHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[str] = []
        self.faults: list[Fault] = []
        self.owners = {ACCOUNT, "org"}
        self.ignored: set[str] = set()  # by a .gitignore of the repository

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, pattern: str) -> list[str]:
        return [each for each in self.log if re.search(pattern, each)]


@contextmanager
def running() -> Iterator[WritableHub]:
    """A server that answers while the block runs."""
    found = WritableHub()
    thread = threading.Thread(target=lambda: found.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WritableHub

    def log_message(self, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        body, url = self.body(), urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {unquote(url.path)}"
        self.server.log.append(request)
        fault = next((each for each in self.server.faults if each.times and re.search(each.request, request)), None)
        if fault is not None:
            fault.times -= 1
            if not fault.after:
                self.answer(fault.status, fault.body, **fault.headers)
                return
        if not request.startswith("PUT /large/") and self.headers.get("Authorization") != f"Bearer {SECRET}":
            self.answer(401, {"error": f"no such token: {self.headers.get('Authorization')}"})
            return
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {url.path}"):
                status, answer, headers = method(self, *map(unquote, found.groups()), body)
                if fault is not None:
                    status, answer, headers = fault.status, fault.body, fault.headers
                self.answer(status, answer, **headers)
                return
        self.answer(404, {"error": "no such route"})

    def do_GET(self) -> None:
        self.handle_any()

    def do_HEAD(self) -> None:
        self.handle_any()

    def do_POST(self) -> None:
        self.handle_any()

    def do_PUT(self) -> None:
        self.handle_any()

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, status: int, found: Any, **headers: str) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def whoami(self, _: bytes) -> Any:
        return 200, {"type": "user", "name": ACCOUNT}, {}

    def validate(self, _: bytes) -> Any:
        return 200, {"errors": [], "warnings": []}, {}

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.server.owners:
            return 404, {"error": "no such organisation"}, {}
        status = 409 if name in self.server.repos else 200
        if status == 200:
            repo = self.server.repos[name] = Repo(asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": b"*.gguf filter=lfs"})
        return status, {"url": f"{self.server.endpoint}/{name}"}, {}

    def branch(self, name: str, branch: str, _: bytes) -> Any:
        repo = self.server.repos[name]
        repo.refs.setdefault(branch, repo.refs["main"])
        return 200, {}, {}

    def revision(self, name: str, revision: str, _: bytes) -> Any:
        if name not in self.server.repos:
            return 404, {"error": "Repository not found"}, {"X_Error_Code": "RepoNotFound"}
        repo = self.server.repos[name]
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return 404, {}, {"X_Error_Code": "RevisionNotFound"}
        siblings = []
        for path, data in repo.commits[sha].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
            if path.endswith(LFS_SUFFIX):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return 200, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}, {}

    def preupload(self, name: str, revision: str, body: bytes) -> Any:
        del name, revision
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LFS_SUFFIX) else "regular",
                "shouldIgnore": each["path"] in self.server.ignored,
            }
            for each in json.loads(body)["files"]
        ]
        return 200, {"files": files}, {}

    def batch(self, name: str, body: bytes) -> Any:
        del name
        objects = json.loads(body)["objects"]
        for each in objects:
            if each["oid"] not in self.server.large:
                each["actions"] = {"upload": {"href": f"{self.server.endpoint}/large/{each['oid']}?signature=of-a-store"}}
        return 200, {"transfer": "basic", "objects": objects}, {}

    def put(self, oid: str, body: bytes) -> Any:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        return 200, {}, {}

    def commit(self, name: str, revision: str, body: bytes) -> Any:
        repo = self.server.repos[name]
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"]["parentCommit"] != repo.refs[revision]:
            return 412, {"error": "A commit has happened since"}, {}
        files = dict(repo.at(revision))
        for each in operations:
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert each["key"] == "deletedFile"
                del files[value["path"]]
        repo.messages.append(header["value"])
        answer = {}
        if "create_pr" in self.query:
            number = len(repo.proposals) + 1
            revision = f"refs/pr/{number}"
            repo.proposals.append(
                {
                    "num": number,
                    "title": header["value"]["summary"],
                    "author": {"name": ACCOUNT},
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "status": "open",
                    "isPullRequest": True,
                    "repo": {"name": name, "type": "model"},
                }
            )
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{name}/discussions/{number}"
        sha = repo.commit(revision, files)
        return 200, answer | {"commitOid": sha, "commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}"}, {}

    def discussions(self, name: str, _: bytes) -> Any:
        found = self.server.repos[name].proposals
        return 200, {"discussions": found, "count": len(found), "start": 0}, {}

    def resolve(self, name: str, revision: str, path: str, _: bytes) -> Any:
        repo = self.server.repos[name]
        data = repo.commits[repo.refs.get(revision, revision)][path]
        return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": revision}


_NAME = "([^/]+/[^/]+)"
_ROUTES = [
    ("GET /api/whoami-v2", _Handler.whoami),
    ("POST /api/validate-yaml", _Handler.validate),
    ("POST /api/repos/create", _Handler.create),
    (f"POST /api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    (f"GET /api/models/{_NAME}/revision/([^/]+)", _Handler.revision),
    (f"POST /api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (f"POST /{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT /large/([0-9a-f]+)", _Handler.put),
    (f"POST /api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    (f"GET /api/models/{_NAME}/discussions", _Handler.discussions),
    (f"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
