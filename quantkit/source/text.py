"""Text for calibration and evaluation, as a plain UTF-8 file with its hash."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from quantkit import workspace
from quantkit.errors import SourceError

BUILTIN = "builtin:python-docs"
_DATASET = re.compile(
    r"hf-dataset://(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)/(?P<config>[\w.-]+)/(?P<split>[\w.-]+)(\?(?P<query>.*))?"
)


@dataclass(frozen=True, slots=True)
class Text:
    name: str  # what the manifest calls it: where it is from, pinned to a commit where there is one
    path: Path
    sha256: str


def fetch(uri: str, folder: Path, cache: Path | None = None) -> Text:
    """The text that `uri` names; one that has to be made is written into `folder`.

    builtin:python-docs, hf-dataset://org/name@revision/config/split?column=text, or a file's path.
    Raises SourceError, UnresolvedError.
    """
    if uri == BUILTIN:
        return _written(uri, python_docs(), folder / "python-docs.txt")
    if uri.startswith("hf-dataset://"):
        name, text = _dataset(uri, cache)
        return _written(name, text, folder / (re.sub(r"[^\w.-]+", "-", name.partition("://")[2]) + ".txt"))
    path = Path(uri.removeprefix("file://")).expanduser()
    if not path.is_file():
        raise SourceError(f"{uri}: no such text file; known beside paths: {BUILTIN}, hf-dataset://...")
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return Text(path.name, path, hashlib.sha256(data).hexdigest())


def _written(name: str, text: str, path: Path) -> Text:
    data = text.encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with workspace.replacing(path) as temporary:
        temporary.write_bytes(data)
    return Text(name, path, hashlib.sha256(data).hexdigest())


def python_docs() -> str:
    """The documentation topics inside CPython, in the order of their names. They differ between Python releases."""
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _dataset(uri: str, cache: Path | None) -> tuple[str, str]:
    """A pinned name and the text of a dataset's column."""
    match = _DATASET.fullmatch(uri)
    if match is None:
        raise SourceError(f"{uri}: expected hf-dataset://org/name@revision/config/split?column=text")
    repo, revision, config, split = match.group("repo", "revision", "config", "split")
    column = parse_qs(match["query"] or "").get("column", ["text"])[0]
    from quantkit.source import hub

    patterns = [f"{config}/{split}-*.parquet", f"{config}/{split}.parquet", f"{config}/{split}/*.parquet"]
    if config == "default":
        patterns += [f"data/{split}-*.parquet", f"{split}.parquet"]
    place, files = hub.dataset_files(repo, revision, patterns, cache)
    if not files:
        raise SourceError(f"{uri}: the dataset has no parquet file for {config}/{split}; tried {', '.join(patterns)}")
    rows = [row for file in files for row in read_column(file, column)]
    return f"hf-dataset://{repo}@{place.name}/{config}/{split}?column={column}", join(rows)


def read_column(path: Path, column: str) -> list[str]:
    """A parquet file's column of strings. Raises SourceError."""
    import pyarrow.parquet as parquet

    columns = parquet.read_schema(path).names
    if column not in columns:
        raise SourceError(f"{path.name} has no column {column!r}; it has {', '.join(columns)}")
    return [row or "" for row in parquet.read_table(path, columns=[column]).column(column).to_pylist()]


def join(rows: list[str]) -> str:
    """Rows as one text: lines as they are, else paragraphs with a blank line between.

    Rows that end in a newline are a file's lines, and the empty ones among them its blank lines, which WikiText writes
    as " \\n": so wikitext-2-raw-v1's test split is wiki.test.raw, byte for byte.
    """
    if any(row.endswith("\n") for row in rows):
        return "".join(row or " \n" for row in rows)
    return "\n\n".join(rows)
