"""Regular expressions of a tokenizer.json: those that nobody knows are tried in a process of its own, which has to end.

Oniguruma, which the tokenizers library matches with, goes back over a text as often as an expression has ways to match it: one
of nested repetitions takes longer than anybody waits, or breaks off in the midst of a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from quantkit.codecs import gguf_pre_table
from quantkit.errors import SourceError

SECONDS = 20.0  # with a start of the tokenizers library; known expressions take milliseconds
_COMMON = ("\\s+", " {2,}", " ", "\\n", "\\r\\n", "\\p{N}", "\\d", "\\p{Cc}")
_TRIAL = """\
import json, sys
from tokenizers import Tokenizer
engine = Tokenizer.from_str(sys.stdin.read())
for letter in ("a", "A", "1", " ", "\\n", "!", "\\u00e9", "\\u4e2d", "a ", "aA", "a1", " \\n", "\\u0301"):
    for end in ("", "\\u2603", "\\n", "b!"):
        engine.encode(letter * 1000 + end, add_special_tokens=False)
"""


def refuse_endless(definition: Mapping[str, Any]) -> None:
    """Raise SourceError for a tokenizer.json with an expression that takes too long for texts of a thousand characters."""
    parts = [definition.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    unknown = sorted(set(_expressions(parts)) - known())
    if not unknown:
        return
    command = [sys.executable, "-c", _TRIAL]
    try:
        child = subprocess.run(
            command, input=json.dumps(definition), capture_output=True, text=True, check=False, timeout=SECONDS
        )
        ended = child.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        raise SourceError(
            f"tokenizer.json: {unknown[0][:80]!r}{' and others' if unknown[1:] else ''} did not come to an end on texts of "
            f"1,000 characters within {SECONDS:.0f} s: refused; give a tokenizer whose expressions do not repeat repetitions"
        )


@cache
def known() -> frozenset[str]:
    """The expressions of the pre-tokenizers that llama.cpp knows, and common ones."""
    return frozenset({*_expressions([list(pre.steps) for pre in gguf_pre_table.TABLE.values()]), *_COMMON})


def _expressions(value: Any) -> Iterator[str]:
    """Every {"Regex": "..."} within."""
    if isinstance(value, Mapping):
        if isinstance(said := value.get("Regex"), str):
            yield said
        for inner in value.values():
            yield from _expressions(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _expressions(inner)
