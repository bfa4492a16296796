"""The HTTP API of an OCI registry, as far as pushing needs it: the distribution specification, version 1.1.

A blob is asked for before it is sent. Small ones go in one request; large ones go in chunks, and after a failure the
registry is asked how far the upload came, so that it goes on from there. Answers of 429 and 5xx and broken connections
are tried again, with longer pauses each time.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

from quantkit.errors import InputError, UnresolvedError
from quantkit.publish.credentials import PASSWORD, USER
from quantkit.values import Progress
from quantkit.version import __version__

CHUNK = 32 << 20
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between tries; when they are spent, the try fails."""

_LONGEST_PAUSE = 60.0
_TIMEOUT = 120.0
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
_LOST = frozenset({404, 416})  # of an upload: it is gone, or is elsewhere than we think


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes under their digest: a file, or content that was made here."""

    name: str
    digest: str
    nbytes: int
    source: Path | bytes

    def read(self, start: int, count: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start : start + count]
        with self.source.open("rb") as file:
            file.seek(start)
            return file.read(count)


@dataclass(frozen=True, slots=True)
class Registry:
    """One repository of a registry. `basic`: credentials in base64; `authorization`: the header in force, once asked for."""

    root: str  # scheme://host[:port]
    name: str
    basic: str | None = field(default=None, repr=False)
    pauses: tuple[float, ...] = PAUSES
    chunk: int = CHUNK
    authorization: dict[str, str] = field(default_factory=dict, repr=False)

    def url(self, path: str) -> str:
        return f"{self.root}/v2/{self.name}/{path}"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload that is under way: where it goes on, how much has arrived, and how much goes in a request."""

    url: str
    offset: int
    chunk: int


def push_blob(registry: Registry, blob: Blob, progress: Progress) -> bool:
    """Send a blob unless it is there; whether it was sent.

    Raises InputError where the registry refuses it (who we are, what it holds, its name), UnresolvedError where it cannot be
    reached or fails again and again.
    """
    if _present(registry, blob):
        return False
    upload: _Upload | None = _begin(registry)
    failures, furthest = 0, 0
    while upload is not None:
        answer = _transmit(registry, blob, upload)
        if isinstance(answer, _Answer) and answer.status == 201:
            break
        whole = min(upload.offset + upload.chunk, blob.nbytes)
        if isinstance(answer, _Answer) and answer.status == 202 and (came := _arrived(answer) or whole) > upload.offset:
            upload = _Upload(_placed(registry, upload.url, answer), came, upload.chunk)
            failures = 0 if upload.offset > furthest else failures
            furthest = max(furthest, upload.offset)
            progress(f"pushing {blob.name}", upload.offset, blob.nbytes)
            continue
        if isinstance(answer, _Answer) and answer.status not in _AGAIN | _LOST:
            raise _refused(registry, f"the upload of {blob.name}", answer)
        _pause(registry, failures, answer, f"the upload of {blob.name} to {registry.root}/{registry.name}")
        failures += 1
        upload = _resumed(registry, blob, upload)
    progress(f"pushing {blob.name}", blob.nbytes, blob.nbytes)
    return True


def push_manifest(registry: Registry, tag: str, manifest: bytes, media_type: str, digest: str) -> None:
    """Put a manifest under a tag, which makes it visible. Raises as `push_blob` does, and InputError for another digest."""
    answer = _call(registry, "PUT", registry.url(f"manifests/{tag}"), manifest, {"Content-Type": media_type})
    if answer.status != 201:
        raise _refused(registry, f"the manifest of {registry.name}:{tag}", answer)
    found = answer.headers.get("Docker-Content-Digest", digest)
    if found != digest:
        raise InputError(
            f"{registry.root} stored {registry.name}:{tag} as {found}, not {digest}: it rewrites manifests; push elsewhere"
        )


def _present(registry: Registry, blob: Blob) -> bool:
    """A redirection leads to where the blob is stored, so it is there."""
    answer = _call(registry, "HEAD", registry.url(f"blobs/{blob.digest}"))
    if answer.status in (401, 403) or answer.status not in (200, 301, 302, 303, 307, 308, 404):
        raise _refused(registry, f"the question for {blob.name}", answer)
    return answer.status != 404


def _begin(registry: Registry) -> _Upload:
    answer = _call(registry, "POST", registry.url("blobs/uploads/"), b"")
    if answer.status != 202 or "Location" not in answer.headers:
        raise _refused(registry, "the start of an upload", answer)
    least = answer.headers.get("OCI-Chunk-Min-Length", "")
    chunk = max(registry.chunk, int(least) if least.isdigit() else 0)
    return _Upload(_placed(registry, registry.url("blobs/uploads/"), answer), 0, chunk)


def _transmit(registry: Registry, blob: Blob, upload: _Upload) -> _Answer | str:
    """One request of an upload: all of a small blob, the next chunk, or the end of a large one."""
    body = blob.read(upload.offset, upload.chunk)
    ends = upload.offset + len(body)
    if (upload.offset == 0 and ends >= blob.nbytes) or not body:
        return _attempt(registry, "PUT", _with(upload.url, digest=blob.digest), body, _OCTETS)
    span = {"Content-Range": f"{upload.offset}-{ends - 1}"}
    return _attempt(registry, "PATCH", upload.url, body, _OCTETS | span)


def _placed(registry: Registry, url: str, answer: _Answer) -> str:
    """Where an upload goes on. A registry behind a proxy that adds TLS may name itself without: TLS stays."""
    location = urlsplit(urljoin(url, answer.headers.get("Location", url)))
    root = urlsplit(registry.root)
    return urlunsplit(location._replace(scheme=root.scheme) if location.netloc == root.netloc else location)


def _resumed(registry: Registry, blob: Blob, upload: _Upload) -> _Upload | None:
    """The upload from where the registry has it, or a new one; None where the blob has arrived after all."""
    answer = _call(registry, "GET", upload.url)
    came = _arrived(answer)
    if answer.status in (200, 202, 204) and came and came <= blob.nbytes:
        return _Upload(_placed(registry, upload.url, answer), came, upload.chunk)
    return None if _present(registry, blob) else _begin(registry)


def _arrived(answer: _Answer) -> int | None:
    """How much of an upload the registry has; None where it does not say, or says 0-0, which some mean as nothing."""
    said = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", ""))
    return int(said[1]) + 1 if said and said[1] != "0" else None


def _call(registry: Registry, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> _Answer:
    """A request that may be made twice, until it is answered by something else than "again". Raises UnresolvedError."""
    failures = 0
    while True:
        answer = _attempt(registry, method, url, body, headers)
        if isinstance(answer, _Answer) and answer.status not in _AGAIN:
            return answer
        _pause(registry, failures, answer, f"{method} {_bare(url)}")
        failures += 1


def _pause(registry: Registry, failures: int, answer: _Answer | str, what: str) -> None:
    """Wait before the next try; raises UnresolvedError when the tries are spent."""
    if failures >= len(registry.pauses):
        why = answer if isinstance(answer, str) else f"status {answer.status}{_codes(answer)}"
        raise UnresolvedError(f"{what} failed {failures + 1} times, last by {why}: see that the registry is up, then run again")
    asked = "" if isinstance(answer, str) else answer.headers.get("Retry-After", "")
    time.sleep(max(registry.pauses[failures], min(float(asked), _LONGEST_PAUSE) if asked.isdigit() else 0.0))


def _attempt(registry: Registry, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> _Answer | str:
    """One request; once more where the registry first wants to know who asks. What broke the connection, where it broke."""
    answer = _request(method, url, body, {**headers, **_ours(registry, url)})
    if isinstance(answer, _Answer) and answer.status == 401 and (header := _authorised(registry, answer)):
        registry.authorization["Authorization"] = header
        answer = _request(method, url, body, {**headers, **_ours(registry, url)})
    return answer


def _ours(registry: Registry, url: str) -> Mapping[str, str]:
    """Who we are is told to the registry alone: an upload's address may lie elsewhere."""
    return registry.authorization if _origin(url) == _origin(registry.root) else {}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _request(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> _Answer | str:
    request = urllib.request.Request(url, body, {"User-Agent": f"quantkit/{__version__}", **headers}, method=method)
    try:
        with _opener().open(request, timeout=_TIMEOUT) as answer:
            return _Answer(answer.status, answer.headers, answer.read())
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise InputError(
                f"{_bare(url)}: its certificate is not trusted ({cause.verify_message}); name its authority in SSL_CERT_FILE"
            ) from error
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            raise InputError(f"{_bare(url)} does not speak TLS: plain_http: true where that is meant") from error
        return str(cause) or type(error).__name__


def _opener() -> urllib.request.OpenerDirector:
    """An opener that follows no redirection and takes every status as an answer."""
    opener = urllib.request.OpenerDirector()
    speaks = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.UnknownHandler,
    )
    for handler in speaks:
        opener.add_handler(handler())
    return opener


def _authorised(registry: Registry, answer: _Answer) -> str | None:
    """The Authorization header that an answer of 401 asks for, or None where we cannot give it.

    Bearer: a token of the realm that it names, for its service and scope (the Docker registry's token protocol).
    """
    challenge = answer.headers.get("WWW-Authenticate", "")
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic":
        return f"Basic {registry.basic}" if registry.basic else None
    said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    if kind.lower() != "bearer" or "realm" not in said:
        return None
    if urlsplit(said["realm"]).scheme != "https" and registry.root.startswith("https"):
        raise InputError(
            f"{registry.root} gives tokens at {_bare(said['realm'])}, which has no TLS: nothing was sent there; push elsewhere"
        )
    asked = {"service": said.get("service"), "scope": said.get("scope") or f"repository:{registry.name}:pull,push"}
    url = _with(said["realm"], **{key: value for key, value in asked.items() if value})
    given = _token(registry, url)
    try:
        token = json.loads(given.body) if given.status == 200 else {}
    except ValueError:
        token = {}
    found = (token.get("token") or token.get("access_token")) if isinstance(token, dict) else None
    if not found:
        raise _refused(registry, f"a token of {_bare(url)}", given)
    return f"Bearer {found}"


def _token(registry: Registry, url: str) -> _Answer:
    failures = 0
    while True:
        answer = _request("GET", url, None, {"Authorization": f"Basic {registry.basic}"} if registry.basic else {})
        if isinstance(answer, _Answer) and answer.status not in _AGAIN:
            return answer
        _pause(registry, failures, answer, f"GET {_bare(url)}")
        failures += 1


def _refused(registry: Registry, what: str, answer: _Answer) -> InputError:
    """What a registry's answer means for the user; of its body only the codes, which the specification lists."""
    where, codes = f"{registry.root}/{registry.name}", _codes(answer)
    said = f"{where}: {what} was refused with status {answer.status}{codes}"
    if answer.status in (200, 401, 403):
        known = "the credentials that it was given do not allow it" if registry.basic else "it was given no credentials"
        return InputError(
            f"{said}: {known}. Log in (docker login, or any tool that writes its config.json), or set {USER} and {PASSWORD}"
        )
    if "DIGEST_INVALID" in codes:
        return InputError(f"{said}: it has another digest than its build stated, so the file changed since. Build it again")
    if answer.status == 404:
        return InputError(f"{said}: there is no such repository; make it, or correct the name")
    if answer.status == 413:
        return InputError(f"{said}: too large for it; raise its limit, or that of the proxy before it")
    return InputError(f"{said}: see that it speaks OCI distribution 1.1 and takes pushes")


def _codes(answer: _Answer) -> str:
    try:
        errors = json.loads(answer.body)["errors"]
        codes = [error["code"] for error in errors if re.fullmatch(r"[A-Z_]{1,40}", str(error["code"]))]
    except (ValueError, KeyError, TypeError):
        return ""
    return f", {', '.join(codes)}" if codes else ""


def _with(url: str, **further: str) -> str:
    """The URL with more in its query; an upload's address may have one already, which stays as it is."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, urlencode(further))))))


def _bare(url: str) -> str:
    """Without query and user, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


_OCTETS = {"Content-Type": "application/octet-stream"}
