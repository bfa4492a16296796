"""Registries on the loopback: Debian's docker-registry, and a small one that fails as a test wants it to."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER, PASSWORD = "someone", "s3cret-pass"
HTPASSWD = f"{USER}:$2y$04$wR8diuKLlY812vvHmN9OKOs/9Xu7mDkmmvZY67PMKG1YEHNwJQWFO\n"


@contextmanager
def docker_registry(folder: Path, *, closed: bool = False, tls: bool = False) -> Iterator[str | None]:
    """host:port of a registry of its own in `folder`, or None where the program is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ""
    if tls:
        subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
        keys = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
        subprocess.run(["openssl", "req", "-x509", *keys, *subject, *files], check=True, capture_output=True)
        own = f", tls: {{certificate: {folder}/cert.pem, key: {folder}/key.pem}}"
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n" if closed else ""
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/store}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: tests{own}}}\n{auth}"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        try:
            for _ in range(100):
                with socket.socket() as knock:
                    if knock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def pull(host: str, path: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(f"http://{host}/v2/{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


@contextmanager
def cutting(host: str, after: int) -> Iterator[str]:
    """host:port that forwards to a registry, and cuts the connection that first brings more than `after` bytes to it."""
    address = (host.partition(":")[0], int(host.partition(":")[2]))
    cut = threading.Event()

    def forward(here: socket.socket, there: socket.socket, limited: bool) -> None:
        count = 0
        with suppress(OSError):
            while data := here.recv(1 << 14):
                count += len(data)
                if limited and count > after and not cut.is_set():
                    cut.set()
                    break
                there.sendall(data)
        for end in (here, there):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(address) as behind:
            back = threading.Thread(target=forward, args=(behind, client, False), daemon=True)
            back.start()
            forward(client, behind, True)
            back.join()

    def accept(server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=accept, args=(server,), daemon=True)
        accepting.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for thread in (accepting, *threads):
            thread.join(5)
    assert cut.is_set(), "nothing was cut"


@dataclass
class Desk:
    """What the small registry holds, was asked, and does instead: `fault(method, path)` gives a status, "cut", or None."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: list[tuple[str, str | None]] = field(default_factory=list)  # who a request says that it is, by path
    fault: Callable[[str, str], int | str | None] = lambda _method, _path: None
    token: str | None = None  # bearer token that it wants
    host: str = ""


@contextmanager
def small_registry(desk: Desk) -> Iterator[Desk]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(desk))
    server.daemon_threads = True
    desk.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield desk
    server.shutdown()
    server.server_close()
    thread.join(5)


def _handler(desk: Desk) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_any(self) -> None:
            path, length = self.path, int(self.headers.get("Content-Length", 0))
            desk.asked.append((self.command, path))
            desk.sent.append((path, self.headers.get("Authorization")))
            fault = desk.fault(self.command, path)
            if fault == "cut":
                upload = path.rpartition("/")[2].partition("?")[0]
                desk.uploads[upload] = desk.uploads.get(upload, b"") + self.rfile.read(length // 2)
                self.connection.close()
                return
            body = self.rfile.read(length)
            if isinstance(fault, int):
                secret = self.headers.get("Authorization", "")
                self.answer(fault, json.dumps({"errors": [{"code": "DENIED", "message": f"no: {secret}"}]}).encode())
            elif path.startswith("/token"):
                known = self.headers.get("Authorization") == "Basic c29tZW9uZTpzM2NyZXQtcGFzcw=="
                self.answer(200, json.dumps({"token": desk.token if known else "anonymous"}).encode())
            elif desk.token and self.headers.get("Authorization") != f"Bearer {desk.token}":
                realm = f'Bearer realm="http://{desk.host}/token",service="tests",scope="repository:a/b:pull,push"'
                self.answer(401, WWW_Authenticate=realm)
            else:
                self.serve(path, body)

        def serve(self, path: str, body: bytes) -> None:
            place, _, query = path.partition("?")
            last = place.rpartition("/")[2]
            if self.command == "HEAD":
                self.answer(200 if last in desk.blobs else 404)
            elif self.command == "POST":
                name = f"upload-{len(desk.uploads)}"
                desk.uploads[name] = b""
                self.answer(202, Location=f"{place}{name}?_state=a%2Fb")
            elif "/manifests/" in place:
                desk.manifests[last] = body
                self.answer(201)
            elif last not in desk.uploads or "_state=a%2Fb" not in query:
                self.answer(404)
            elif self.command == "GET":
                self.answer(204, Location=path, Range=f"0-{len(desk.uploads[last]) - 1}")
            elif self.command == "PATCH":
                begin = int(self.headers["Content-Range"].partition("-")[0])
                if begin != len(desk.uploads[last]):
                    self.answer(416)
                    return
                desk.uploads[last] += body
                self.answer(202, Location=path, Range=f"0-{len(desk.uploads[last]) - 1}")
            else:
                content = desk.uploads.pop(last) + body
                digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                asked = re.sub("%3A", ":", query.partition("digest=")[2])
                if digest != asked:
                    self.answer(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
                    return
                desk.blobs[digest] = content
                self.answer(201)

    for method in ("HEAD", "GET", "POST", "PUT", "PATCH"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    return Handler
