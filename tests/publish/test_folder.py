"""Publishing into a folder: whole versions only, whatever happens."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quantkit.errors import InputError, ResourceError
from quantkit.publish.folder import SUMS, obstacle, publish


def build(folder: Path, version: str, size: int = 1000) -> dict[str, Path]:
    """A build whose every file says which version it is of."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("a.gguf", "b.json")}
    for path in files.values():
        path.write_bytes(version.encode() * size)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in files.items()]
    (folder / SUMS).write_text("".join(lines))
    return {**files, SUMS: folder / SUMS}


def in_force(destination: Path) -> str:
    """The version in force; every file of it must be whole."""
    return whole(os.open(destination, os.O_RDONLY | os.O_DIRECTORY))


def whole(folder: int) -> str:
    try:
        texts = {}
        for name in ("a.gguf", "b.json", SUMS):
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
                texts[name] = file.read()
    finally:
        os.close(folder)
    for line in texts.pop(SUMS).decode().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256(texts[name]).hexdigest() == digest
    [versions] = ({text[:2] for text in texts.values()},)
    assert len(versions) == 1
    return versions.pop().decode()


def test_publish_switch_and_keep_one_before(tmp_path: Path) -> None:
    destination = tmp_path / "artefacts" / "demo"
    for version in ("v1", "v2", "v3"):
        assert publish(build(tmp_path / "build" / version, version), destination, version) == destination
        assert in_force(destination) == version
    assert destination.is_symlink()
    assert sorted(os.listdir(tmp_path / "artefacts")) == [".demo", "demo"]
    assert sorted(os.listdir(tmp_path / "artefacts" / ".demo")) == ["v2", "v3"]


def test_files_are_linked_on_one_device(tmp_path: Path) -> None:
    files = build(tmp_path / "build", "v1")
    destination = publish(files, tmp_path / "out", "v1")
    assert (destination / "a.gguf").stat().st_ino == files["a.gguf"].stat().st_ino


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    files = build(tmp_path / "build", "v1")
    destination = publish(files, tmp_path / "out", "v1")
    before = destination.lstat().st_ino
    assert publish(files, destination, "v1").lstat().st_ino == before
    with pytest.raises(InputError, match="already holds another version 'v1'"):
        publish(build(tmp_path / "other", "w1"), destination, "v1")


def test_going_back_to_the_version_before(tmp_path: Path) -> None:
    builds = {version: build(tmp_path / version, version) for version in ("v1", "v2")}
    for version in ("v1", "v2", "v1"):
        publish(builds[version], tmp_path / "out", version)
    assert in_force(tmp_path / "out") == "v1"
    assert sorted(os.listdir(tmp_path / ".out")) == ["v1", "v2"]


def test_what_is_not_quantkits_is_refused(tmp_path: Path) -> None:
    files = build(tmp_path / "build", "v1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("mine")
    with pytest.raises(InputError, match="not published by quantkit: move it away"):
        publish(files, tmp_path / "folder", "v1")
    assert (tmp_path / "folder" / "precious").read_text() == "mine"
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(InputError, match="remove the link"):
        publish(files, tmp_path / "link", "v1")
    assert not (tmp_path / ".link").exists()
    assert not (tmp_path / ".folder").exists()


def test_obstacles_are_seen_before_anything_is_published(tmp_path: Path) -> None:
    assert obstacle(tmp_path / "new" / "out") is None
    publish(build(tmp_path / "build", "v1"), tmp_path / "out", "v1")
    assert obstacle(tmp_path / "out") is None
    (tmp_path / "file").touch()
    assert "is not a folder" in str(obstacle(tmp_path / "file" / "out"))
    (tmp_path / "mine").mkdir()
    assert "was not published by quantkit" in str(obstacle(tmp_path / "mine"))


def test_files_and_sums_must_agree(tmp_path: Path) -> None:
    files = build(tmp_path / "build", "v1")
    publish(files, tmp_path / "out", "v1")
    newer = build(tmp_path / "newer", "v2")
    with pytest.raises(InputError, match=r"SHA256SUMS is not among"):
        publish({"a.gguf": newer["a.gguf"]}, tmp_path / "out", "v2")
    with pytest.raises(InputError, match=r"differ in b\.json"):
        publish({name: path for name, path in newer.items() if name != "b.json"}, tmp_path / "out", "v2")
    newer["a.gguf"].write_bytes(b"rot")
    with pytest.raises(InputError, match=r"a\.gguf changed since it was built"):
        publish(newer, tmp_path / "out", "v2")
    assert in_force(tmp_path / "out") == "v1"
    assert os.listdir(tmp_path / ".out") == ["v1"]


@pytest.mark.parametrize("version", ["", ".hidden", "../up", "a/b"])
def test_a_version_is_one_folder_name(tmp_path: Path, version: str) -> None:
    with pytest.raises(InputError, match="no folder name"):
        publish(build(tmp_path / "build", "v1"), tmp_path / "out", version)


_CHILD = """
import os, pathlib, signal, sys
from quantkit.publish import folder

kind, at, destination, version, *pairs = sys.argv[1:]
owner = folder if kind.startswith("_") else pathlib.Path
real, calls = getattr(owner, kind), 0

def deadly(*args, **options):
    global calls
    calls += 1
    if calls == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)

setattr(owner, kind, deadly)
folder.publish(dict(zip(pairs[::2], map(pathlib.Path, pairs[1::2]))), pathlib.Path(destination), version)
"""


@pytest.mark.parametrize(
    ("kind", "at", "expected"),
    [
        ("_fill", 1, "v1"),
        ("_sync", 1, "v1"),
        ("_sync", 3, "v1"),
        ("_sync", 4, "v1"),
        ("_verify", 1, "v1"),
        ("rename", 1, "v1"),
        ("_sync", 5, "v1"),  # the version is whole, but not in force
        ("symlink_to", 1, "v1"),
        ("replace", 1, "v1"),
        ("_sync", 6, "v2"),
        ("_remove", 2, "v2"),
    ],
)
def test_killed_at_any_point_one_whole_version_is_in_force(tmp_path: Path, kind: str, at: int, expected: str) -> None:
    destination = tmp_path / "out"
    publish(build(tmp_path / "v1", "v1"), destination, "v1")
    files = build(tmp_path / "v2", "v2")
    arguments = [text for name, path in files.items() for text in (name, str(path))]
    ended = subprocess.run([sys.executable, "-c", _CHILD, kind, str(at), str(destination), "v2", *arguments])
    assert ended.returncode == -signal.SIGKILL
    assert in_force(destination) == expected
    publish(build(tmp_path / "v3", "v3"), destination, "v3")
    assert in_force(destination) == "v3"
    assert sorted(os.listdir(tmp_path / ".out")) == sorted([expected, "v3"])
    assert [name for name in os.listdir(tmp_path) if "partial" in name] == []


def test_a_reader_sees_one_version_or_the_other(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    builds = [(f"v{n}", build(tmp_path / f"v{n}", f"v{n}", size=20_000)) for n in range(1, 10)]
    publish(builds[0][1], destination, "v1")
    done, seen, faults = threading.Event(), [], []

    def read() -> None:
        while not done.is_set():
            try:
                folder = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)  # there at every moment
            except OSError as error:
                faults.append(error)
                return
            try:
                seen.append(whole(folder))
            except FileNotFoundError:
                continue  # slept through two publications: the version it had open was removed
            except AssertionError as error:
                faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for version, files in builds[1:]:
        publish(files, destination, version)
    done.set()
    reader.join()
    assert faults == []
    assert seen == sorted(seen)
    assert len(seen) > 1


def test_two_publishers_at_once(tmp_path: Path) -> None:
    import fcntl

    publish(build(tmp_path / "v1", "v1"), tmp_path / "out", "v1")
    handle = os.open(tmp_path / ".out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ResourceError, match="another run is publishing"):
        publish(build(tmp_path / "v2", "v2"), tmp_path / "out", "v2")
    os.close(handle)
    assert in_force(publish(build(tmp_path / "v2", "v2"), tmp_path / "out", "v2")) == "v2"


def test_a_full_disk_leaves_the_old_version_and_nothing_half(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        publish(build(tmp_path / "v1", "v1"), disk / "out", "v1")
        with pytest.raises(ResourceError, match=r"is full: publishing needs 1\.6 MB"):
            publish(build(tmp_path / "v2", "v2", size=400_000), disk / "out", "v2")
        assert in_force(disk / "out") == "v1"
        assert os.listdir(disk / ".out") == ["v1"]
        assert sorted(os.listdir(disk)) == [".out", "out"]
        assert in_force(publish(build(tmp_path / "v3", "v3"), disk / "out", "v3")) == "v3"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
