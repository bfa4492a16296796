"""Measurements in a process of its own: a module that prints a Speed or a Resident as its last line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit import memory
from quantkit.errors import UnresolvedError
from quantkit.values import Speed


def measure(module: str, path: Path, options: Mapping[str, str | int], environment: Mapping[str, str] | None = None) -> Speed:
    """What a module that prints a Speed says of `path`; see `run`."""
    return Speed(**run(module, path, options, environment))


def run(
    module: str, path: Path, options: Mapping[str, str | int], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `python -m <module>` with options "--key value" says of `path`. environment: set besides this process's own.

    Raises UnresolvedError where the child fails, with what it said.
    """
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command, settings = [sys.executable, "-m", module, *words], {**os.environ, **(environment or {})}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    if child.returncode != 0:
        said = child.stderr.strip().splitlines()
        raise UnresolvedError(f"measuring {path} ended with status {child.returncode}: {said[-1] if said else 'no output'}")
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def tokens(count: int, vocabulary: int) -> list[int]:
    """Arbitrary ones, the same in every engine: neither speed nor memory depends on them."""
    return [(7919 * index + 17) % vocabulary for index in range(count)]


def speed(engine: str, threads: int, prompt: int, decode: int, times: tuple[float, float, float, float, float, float]) -> Speed:
    """This process's Speed with `prompt` tokens read and `decode` made (0: there is no decoder). times, in seconds: loading
    began and was done, the warm-up was done, the prompt was read, the first token was there, and the last."""
    begin, loaded, warm, filled, first, end = times
    return Speed(
        engine=engine,
        threads=threads,
        prompt_tokens=prompt,
        decode_tokens=decode,
        load_seconds=loaded - begin,
        first_token_seconds=first - warm,
        prefill_tokens_per_s=prompt / (filled - warm),
        decode_tokens_per_s=decode / (end - first) if decode else None,
        peak_rss_bytes=memory.peak(),
    )
