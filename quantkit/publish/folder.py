"""Publish into a folder: versioned, and switched in one step.

    artefacts/demo -> .demo/3f2a91              a symlink, replaced atomically
    artefacts/.demo/3f2a91/...                  the version in force
    artefacts/.demo/91bc04/...                  the one before it; older ones are removed
    artefacts/.demo/.partial-...                one that is being made, or that a crash left: the next run removes it

A reader who opens files through `artefacts/demo` sees one whole version or the other. Files are hard links to the
build where both are on one device, so publishing costs no disk; a build replaces its files and never writes into them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quantkit.errors import InputError, ResourceError
from quantkit.manifest import within
from quantkit.publish import signature

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_PARTIAL = ".partial-"
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP}


def publish(build_files: Mapping[str, Path], destination: Path, version: str) -> Path:
    """Put `build_files` (name -> path, SHA256SUMS among them) in force at `destination`, and return it.

    Publishing the version that is in force already, with the same sums, changes nothing. Raises InputError when the
    files are not those of SHA256SUMS or the destination is not quantkit's, ResourceError when the disk is full or
    another run publishes there. Whatever happens before the switch, the old version stays in force.
    """
    destination = destination.absolute()
    recorded = sums(build_files)
    if version.startswith(".") or "/" in version or not version:
        raise InputError(f"version {version!r} is no folder name; use letters, digits and dashes")
    store = _store(destination)
    current = _current(destination, store)
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{destination} cannot be published to: {error.strerror}; publish elsewhere") from error
    with _locked(store):
        if current == version and (store / version / SUMS).read_bytes() == build_files[SUMS].read_bytes():
            return destination
        if current == version:
            raise InputError(f"{destination} already holds another version {version!r}; publish under a new version")
        _remove(entry for entry in store.iterdir() if entry.name == version or entry.name.startswith(_PARTIAL))
        stage = store / f"{_PARTIAL}{version}"
        try:
            _fill(stage, build_files)
            _verify(stage, recorded)
            stage.rename(store / version)
            _sync(store)
            _switch(destination, Path(store.name) / version)
        except OSError as error:
            shutil.rmtree(stage, ignore_errors=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(f"{destination}: publishing failed, the version in force is untouched: {error}") from error
            need = sum(path.stat().st_size for path in build_files.values())
            raise ResourceError(
                f"the disk of {store.parent} is full: publishing needs {need / 1e6:.1f} MB there. The version in force "
                "is untouched. Free some space, or keep the work folder on the same disk (files are then linked)"
            ) from error
        except InputError:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        _remove(entry for entry in store.iterdir() if entry.name not in (version, current))
    return destination


def obstacle(destination: Path) -> str | None:
    """What would keep `publish` from this destination, as far as it can be seen without writing; None if nothing."""
    destination = destination.absolute()
    try:
        _current(destination, _store(destination))
    except InputError as error:
        return str(error)
    existing = next(parent for parent in (_store(destination), *destination.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return f"{destination} cannot be published to: {existing} is not a folder that may be written to; publish elsewhere"
    return None


def _store(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}")


def sums(build_files: Mapping[str, Path]) -> dict[str, str]:
    """SHA256SUMS of the files to publish, name -> digest. Raises InputError unless it lists all the others, but for a signature
    over it too, and no more."""
    if SUMS not in build_files:
        raise InputError(f"{SUMS} is not among the files to publish: {', '.join(sorted(build_files))}")
    found = listed(build_files[SUMS])
    names = set(build_files) - {SUMS, signature.NAME}
    if set(found) != names:
        raise InputError(f"{SUMS} and the files to publish differ in {', '.join(sorted(set(found) ^ names))}")
    if odd := [name for name in names if len(Path(name).parts) > 3]:
        raise InputError(
            f"published files lie in one folder or at most two below it; these names do not: {', '.join(sorted(odd))}"
        )
    return found


def listed(path: Path) -> dict[str, str]:
    """A SHA256SUMS, name -> digest. Raises InputError where it cannot be read, or lists what is no file within its folder."""
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{line!r} is no digest of a file within")
            found[within(match[2])] = match[1]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; run the recipe again, or fetch the folder again") from error
    return found


def _current(destination: Path, store: Path) -> str | None:
    """The version in force, or None; refuses what quantkit did not put there."""
    if not destination.is_symlink():
        if destination.exists():
            raise InputError(f"{destination} exists and was not published by quantkit: move it away, or publish elsewhere")
        return None
    target = Path(os.readlink(destination))
    if target.parent != Path(store.name):
        raise InputError(f"{destination} is a link to {target}, not quantkit's: remove the link, or publish elsewhere")
    return target.name


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """The store for this process alone; the lock ends with the process."""
    handle = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ResourceError(f"another run is publishing to {store.parent}: wait for it to end, then run again") from error
    finally:
        os.close(handle)


def _fill(stage: Path, build_files: Mapping[str, Path]) -> None:
    stage.mkdir()
    for below in sorted({Path(name).parent for name in build_files} - {Path()}):
        (stage / below).mkdir()
    for name, path in sorted(build_files.items()):
        try:
            os.link(path.resolve(), stage / name)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(path, stage / name)
        _sync(stage / name)
    for name in {str(Path(name).parent) for name in build_files}:
        _sync(stage / name)


def _verify(stage: Path, recorded: Mapping[str, str]) -> None:
    """Read back what lies in the stage: the sums must be those that the build stated."""
    for name, digest in recorded.items():
        with (stage / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise InputError(f"{name} changed since it was built: sha256 {found}, {SUMS} says {digest}. Build it again")


def _switch(destination: Path, target: Path) -> None:
    """Point `destination` at `target`: there is no moment without a version."""
    link = destination.with_name(f".{destination.name}{_PARTIAL}link")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    link.replace(destination)
    _sync(destination.parent)


def _remove(versions: Iterable[Path]) -> None:
    for version in tuple(versions):
        shutil.rmtree(version)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
