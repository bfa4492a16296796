"""The workspace: one run at a time, nothing half written, finished steps found again."""

import errno
import os
import subprocess
import sys

import pytest

from quantkit import workspace
from quantkit.errors import InputError, ResourceError


def test_a_second_run_says_so_and_stops(tmp_path):
    with workspace.locked(tmp_path / "w"):
        code = "import sys, pathlib; from quantkit import workspace\nwith workspace.locked(pathlib.Path(sys.argv[1])): pass"
        second = subprocess.run([sys.executable, "-c", code, str(tmp_path / "w")], capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert f"another run is at work here (process {os.getpid()})" in second.stderr
    with workspace.locked(tmp_path / "w"):
        pass


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    with workspace.locked(tmp_path):
        (tmp_path / "model.gguf.partial").write_bytes(b"half")
    with workspace.locked(tmp_path):
        assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_no_run_made_is_left_alone(tmp_path):
    (tmp_path / "download.partial").write_bytes(b"mine")
    with pytest.raises(InputError, match="did not make; use another --work-dir"), workspace.locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["download.partial"]


def write_half(path, error):
    with workspace.replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_failure_leaves_the_old_file_and_no_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt())
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match="the disk is full"):
        write_half(tmp_path / "file", OSError(errno.ENOSPC, "No space left on device"))
    assert not list(tmp_path.iterdir())


def test_a_finished_step_is_found_again_while_it_is_whole(tmp_path):
    path, made_from = tmp_path / "artefact", workspace.key(recipe="a", source="b")
    path.write_bytes(b"whole")
    workspace.remember(path, made_from, seconds=1.5)
    assert workspace.recall(path, made_from)["facts"] == {"seconds": 1.5}
    assert workspace.recall(path, workspace.key(recipe="a", source="c")) is None
    path.write_bytes(b"rotte")
    assert workspace.recall(path, made_from) is None
    path.unlink()
    assert workspace.recall(path, made_from) is None
