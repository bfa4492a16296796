"""Vocabularies for tests: varied lines of text, a file with nothing but a vocabulary, llama.cpp and tokenizers on it."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXT

from quantkit.codecs import gguf_kv

_WORDS = [*TEXT.split(), "can't", "I'LL", "we'Re", "naïve", "x1y22z333", "3.14159", "1234567", "__init__", "->", "..."]
_SPACES = [" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000"]
_RANGES = [
    (0x20, 0x7F), (0xA1, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x627, 0x64A), (0x905, 0x939), (0x4E00, 0x9FA5),
    (0x3041, 0x30FE), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x2190, 0x22FF), (0xE01, 0xE2E), (0x660, 0x669),
]  # fmt: skip


def piece(dice: random.Random, special: list[str]) -> str:
    kind = dice.random()
    if kind < 0.45:
        return dice.choice(_WORDS)
    if kind < 0.6:
        return str(dice.randrange(10 ** dice.randrange(1, 9)))
    if kind < 0.9 or not special:
        low, high = dice.choice(_RANGES)
        return "".join(chr(dice.randrange(low, high)) for _ in range(dice.randrange(1, 6)))
    return dice.choice(special)


def line(dice: random.Random, special: list[str]) -> str:
    return "".join(piece(dice, special) + dice.choice(["", *_SPACES]) for _ in range(dice.randrange(1, 14)))


def lines(count: int, special: list[str]) -> list[str]:
    """Varied lines: words, code, numbers, whitespace, many scripts, special tokens; in NFC, which llama.cpp expects."""
    dice = random.Random(0)
    return [unicodedata.normalize("NFC", line(dice, special)) for _ in range(count)]


def engine(definition: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer as Engine

    return Engine.from_str(json.dumps(definition))


def llama(path: Path) -> Callable[[str], list[int]]:
    """llama.cpp's tokenisation with the vocabulary in a GGUF file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)


def written(pairs: list[gguf_kv.KeyValue], path: Path) -> Path:
    """A GGUF file that holds a vocabulary and nothing else."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    gguf_kv.write(writer, pairs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def differences(first: Callable[[str], list[int]], second: Callable[[str], list[int]], texts: list[str]) -> list[str]:
    return [text for text in texts if first(text) != second(text)]


def plain(definition: Mapping[str, Any]) -> Callable[[str], list[int]]:
    found = engine(definition)
    return lambda text: found.encode(text, add_special_tokens=False).ids
