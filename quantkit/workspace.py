"""build/<recipe>/: where everything is while it is made and whatever failed. Locked, and continued from the last finished step.

A step writes under a temporary name (`*.partial`), is renamed when whole, and leaves a small key file beside it: the digest of
what it was made from and of what it became. A later run keeps a file whose key and digest still hold.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.errors import InputError, ResourceError

PARTIAL = ".partial"
LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder, made if need be, held for this process alone; leftovers of a killed run are removed.

    Raises ResourceError when another run holds it or it cannot be made, InputError for a folder of files that no run made.
    """
    if folder.is_dir() and not is_one(folder) and any(folder.iterdir()):
        raise InputError(f"{folder} holds files that quantkit did not make; use another --work-dir, or move them away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be worked in: {error.strerror}; use --work-dir for another place") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            raise ResourceError(
                f"{folder}: another run is at work here (process {holder}); wait for it, or use --work-dir for a second one"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        for leftover in list(folder.rglob("*" + PARTIAL)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield folder
    finally:
        os.close(lock)


def is_one(folder: Path) -> bool:
    """Whether a run made this folder; no other is emptied or removed."""
    return (folder / LOCK).is_file()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: renamed to it when the block ends well, removed when it does not.

    A full disk becomes a ResourceError that names the file.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        short = error.errno is None and str(error).endswith("written")  # numpy's tofile
        if error.errno != errno.ENOSPC and not short:
            raise
        raise ResourceError(f"{path}: the disk is full; nothing was kept of it. Free some space, or use --work-dir") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A folder within `folder` that lives while the block runs; what a killed run left of it goes when the next begins."""
    place = Path(tempfile.mkdtemp(suffix=PARTIAL, dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def key(**parts: Any) -> str:
    """sha256 of the canonical JSON of everything that a step's result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def remember(path: Path, made_from: str, *, sha256: str | None = None, **facts: Any) -> None:
    """Write down that `path` is finished, what it was made from, and facts that a later run wants back.

    sha256: of the file, where its maker has read it already.
    """
    record = {"key": made_from, "sha256": sha256 or digest(path), "nbytes": path.stat().st_size, "facts": facts}
    with replacing(_record(path)) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")


def recall(path: Path, made_from: str) -> Mapping[str, Any] | None:
    """What `remember` wrote for this file, when it is whole and was made from the same; else None."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("key") != made_from or not path.is_file() or path.stat().st_size != record["nbytes"]:
        return None
    return record if digest(path) == record["sha256"] else None


def empty(folder: Path) -> None:
    """Remove everything but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.key")
