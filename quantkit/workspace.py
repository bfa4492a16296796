"""build/<recipe>/: where everything is while it is made and whatever failed. Locked, and continued from the last finished step.

A step writes under a temporary name (`*.partial`), is renamed when whole, and leaves a small key file beside it: the digest of
what it was made from and of what it became. A later run keeps a file whose key and digest still hold; a file that has kept its
size, time and inode is not read again for it. JOURNAL lists every step that was finished.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.errors import InputError, ResourceError

PARTIAL = ".partial"
LOCK = ".lock"
JOURNAL = ".journal"


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
    record = {"key": made_from, "sha256": sha256 or digest(path), "stamp": stamp(path), "facts": facts}
    with replacing(_record(path)) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")
    with open(path.with_name(JOURNAL), "a", encoding="utf-8") as journal:
        journal.write(json.dumps({"step": path.name, "key": made_from, "seconds": facts.get("seconds")}) + "\n")


def recall(path: Path, made_from: str) -> Mapping[str, Any] | None:
    """What `remember` wrote for this file, when it is whole and was made from the same; else None."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("key") != made_from or not path.is_file() or path.stat().st_size != record.get("stamp", [None])[0]:
        return None
    return record if stamp(path) == record["stamp"] or digest(path) == record["sha256"] else None


def stamp(path: Path) -> list[int]:
    """What tells that a file is the one it was, without reading it: size, time of change in ns, inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def remembered(known: Path | None, files: Sequence[Path], compute: Callable[[Path], str]) -> list[str]:
    """The digests of files; of one that has kept its stamp the digest that the file `known` holds."""
    try:
        held = json.loads(known.read_text(encoding="utf-8")) if known else {}
    except (OSError, ValueError):
        held = {}
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        before, seen = held.get(str(path.absolute())), stamp(path)
        found[str(path.absolute())] = before if before and before["stamp"] == seen else {"stamp": seen, "sha256": compute(path)}
    if known is not None and found != held:
        with replacing(known) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    return [entry["sha256"] for entry in found.values()]


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


def leftovers(work_dir: Path) -> list[tuple[Path, int]]:
    """Build folders and what they hold, bytes."""
    folders = sorted(path for path in work_dir.glob("*") if is_one(path))
    return [(path, sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())) for path in folders]


def remove(builds: Sequence[tuple[Path, int]]) -> None:
    """Free what `leftovers` found. Raises ResourceError for a folder that a run holds."""
    for path, _ in builds:
        with locked(path):
            shutil.rmtree(path)
