"""Texts: a file, the documentation inside CPython, rows of a dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from quantkit.errors import SourceError
from quantkit.source import text


def test_the_builtin_text_is_the_same_on_every_call(tmp_path: Path) -> None:
    first, second = (text.fetch(text.BUILTIN, tmp_path / name) for name in "ab")
    assert first.sha256 == second.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert first.path.stat().st_size > 400_000
    assert not list(tmp_path.rglob("*.partial"))


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("naïve\r\n".encode())
    found = text.fetch(f"file://{path}", tmp_path)
    assert (found.name, found.path, found.sha256) == ("a.txt", path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_rows_become_a_text() -> None:
    assert text.join(["", " = A = \n", "", " b \n"]) == " \n = A = \n \n b \n"
    assert text.join(["one", "two"]) == "one\n\ntwo"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such text file"):
        text.fetch(str(tmp_path / "absent"), tmp_path)
    (tmp_path / "latin").write_bytes(b"abc\xe9")
    with pytest.raises(SourceError, match=r"latin is not UTF-8 text \(byte 3\)"):
        text.fetch(str(tmp_path / "latin"), tmp_path)
    with pytest.raises(SourceError, match="no such text file"):
        text.verify(str(tmp_path / "absent"))
    text.verify(text.BUILTIN)
    with pytest.raises(SourceError, match="expected hf-dataset://org/name@revision"):
        text.fetch("hf-dataset://org/name", tmp_path)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["a", None]}), tmp_path / "x.parquet")
    assert text.read_column(tmp_path / "x.parquet", "body") == ["a", ""]
    with pytest.raises(SourceError, match=r"x\.parquet has no column 'text'; it has body"):
        text.read_column(tmp_path / "x.parquet", "text")
