"""Text and JSON out of a checkpoint that nobody vouches for: bounded in size, depth and number before it is parsed.

A document may be a link within its folder, or into the blobs of the Hub's cache, as that makes them; one that leads anywhere
else is refused, since what it leads to could end up in what is published. Weights may be links to anywhere: what is read of
them is held against config.json, and never published as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from quantkit.errors import SourceError

TEXT = 16 << 20  # bytes of a template, a card, a licence; real ones stay below 1 MB
CONFIG = 32 << 20  # of config.json and its like; the largest label maps take 2 MB
TABLE = 128 << 20  # of a vocabulary or an index of shards; the largest known takes 35 MB
DEPTH = 100  # of nesting; real ones stay below 20, and serde's parser ends at 128
LISTS = 1 << 22  # lists and objects; the largest vocabulary known has half a million
VALUES = 1 << 23  # that commas part; the largest vocabulary known has 1.6 million
_TABLES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json")
_BLOCK = 1 << 24  # bytes looked at together
_OTHER = bytes(byte for byte in range(256) if byte not in b"[]{},")
_TEXT = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def read_bytes(path: Path, most: int = TABLE) -> bytes:
    """A file of at most `most` bytes. Raises SourceError for a longer one, not a byte of which is read, and for a link that
    leads out of its folder."""
    refuse_stray(path)
    size = path.stat().st_size
    if size > most:
        raise SourceError(
            f"{path.name} has {size:,} bytes, at most {most:,} are read of such a file; it is damaged, or no checkpoint"
        )
    with path.open("rb") as file:
        return file.read(most)


def read_text(path: Path, most: int = TEXT, errors: str = "strict") -> str:
    """A UTF-8 file of at most `most` bytes. Raises SourceError."""
    try:
        text = read_bytes(path, most).decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name} is not UTF-8 text (byte {error.start}); fetch it again") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """A JSON file's object; None if there is no such file. Raises SourceError."""
    if not path.is_file():
        return None
    found = read_any(path)
    if not isinstance(found, dict):
        raise SourceError(f"{path.name} holds a {type(found).__name__} where an object is expected; fetch it again")
    return found


def read_any(path: Path) -> Any:
    """What a JSON file holds. Raises SourceError."""
    large = path.name in _TABLES or path.name.endswith(".index.json")
    return parse(read_bytes(path, TABLE if large else CONFIG), path.name)


def parse(data: bytes, name: str, unique: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What JSON says. unique: makes an object of its pairs. Raises SourceError for what is none, or too deep or too much."""
    _measure(data, name)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name} is not JSON ({error}); fetch it again") from error


def inside(name: str, where: str) -> str:
    """The name of a file within a checkpoint's folder, as it is. Raises SourceError for one that leads out of it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        raise SourceError(f"{where} names {name!r}, which leads out of the checkpoint's folder: refused")
    return name


def depth(data: bytes) -> int:
    """How deep brackets and braces are nested, whatever stands between them."""
    marks = np.frombuffer(data.translate(_STEPS, _TEXT), np.int8)
    return int(np.cumsum(marks, dtype=np.int32).max(initial=0))


def _measure(data: bytes, name: str) -> None:
    """Raise SourceError where the nesting or the number of values is beyond every real document's."""
    marks = _structure(data)
    opened, closed = sum(map(marks.count, (b"[", b"{"))), sum(map(marks.count, (b"]", b"}")))
    _bound(max(opened, closed), LISTS, "lists and objects", name)
    _bound(marks.count(b","), VALUES, "values", name)
    _bound(depth(marks), DEPTH, "levels deep", name)


def _structure(data: bytes) -> bytes:
    """Brackets, braces and commas of JSON, those in its strings left out."""
    plain, inside, found = data.replace(b"\\\\", b"").replace(b'\\"', b""), False, []
    for at in range(0, len(plain), _BLOCK):
        block = np.frombuffer(plain[at : at + _BLOCK], np.uint8)
        turns = block == ord('"')
        turns[0] ^= inside
        within = np.logical_xor.accumulate(turns)
        found.append(block[~within].tobytes().translate(None, _OTHER))
        inside = bool(within[-1])
    return b"".join(found)


def _bound(found: int, most: int, what: str, name: str) -> None:
    if found > most:
        raise SourceError(f"{name} is {found:,} {what}, at most {most:,} are read; it is damaged, or no checkpoint")


def refuse_stray(path: Path) -> None:
    """Raise SourceError for a link out of its folder, but into the Hub's cache."""
    if not path.is_symlink():
        return
    target, home = path.resolve(), path.parent.resolve()
    cached = target.parent.name == "blobs" and target.parent.parent.name.startswith(("models--", "datasets--"))
    if not cached and not target.is_relative_to(home):
        raise SourceError(f"{path.name} is a link to {target}, outside of its folder: refused; put the file itself there")
