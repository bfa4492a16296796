"""Pre-tokenizers of byte-level BPE: the name in tokenizer.ggml.pre <-> the definition in tokenizer.json.

llama.cpp compiles one set of regular expressions per name (src/llama-vocab.cpp); a tokenizer.json spells them out.
One table serves both directions. llama.cpp normalises nothing, so NFC in a definition is neither told apart nor kept
apart: text that is not in NFC meets different tokens there than in transformers, for every converter.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import UnsupportedError

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pre:
    """`steps`: the pre_tokenizers of tokenizer.json in order. `also`: llama.cpp's other names for the same rules."""

    steps: tuple[Step, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False  # what llama.cpp does when tokenizer.ggml.add_bos_token is absent
    also: tuple[str, ...] = ()


def _split(regex: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _bytes(words: bool) -> Step:
    """To the byte alphabet; with `words`, GPT-2's own expression splits first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def _digits(individual: bool) -> Step:
    return {"type": "Digits", "individual_digits": individual}


_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELT_OUT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN2 = _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = f"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_GPT4O = (
    f"{_HEAD}{_UPPER}*{_LOWER}+{_ANY_CASE}?|{_HEAD}{_UPPER}+{_LOWER}*{_ANY_CASE}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*""" + _SPACES
)

# Of several names with the same rules the first is written; only llama.cpp's detokenising tells them apart.
TABLE: Mapping[str, Pre] = {
    "gpt-2": Pre((_bytes(True),), also=("phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum", "exaone4")),
    "smollm": Pre(
        (_digits(True), _bytes(True)), also=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
    ),
    "llama-bpe": Pre(
        (_split(_LLAMA3), _bytes(False)), ignore_merges=True, add_bos=True,
        also=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    "smaug-bpe": Pre((_split(_LLAMA3), _bytes(False)), also=("dbrx",)),
    "qwen2": Pre(
        (_split(_QWEN2), _bytes(False)), nfc=True, also=("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo")
    ),
    "tekken": Pre((_split(_TEKKEN), _bytes(False)), ignore_merges=True, add_bos=True),
    "gpt-4o": Pre((_split(_GPT4O), _bytes(False)), also=("llama4", "kanana2")),
    "deepseek-v3": Pre((_split(r"\p{N}{1,3}"), _split("[一-龥぀-ゟ゠-ヿ]+"), _split(_DEEPSEEK3), _bytes(False))),
    "falcon": Pre(
        ({"type": "Punctuation", "behavior": "Contiguous"}, _bytes(True), _digits(False), _split("[0-9][0-9][0-9]"))
    ),
}  # fmt: skip


def find(definition: Mapping[str, Any]) -> str:
    """The name whose rules a parsed tokenizer.json spells out. Raises UnsupportedError naming the nearest."""
    shape = _shape(definition)
    shapes = {name: _shape(encode(name)) for name in TABLE}
    for name, other in shapes.items():
        if shape == other:
            return name
    nearest = max(shapes, key=lambda name: difflib.SequenceMatcher(None, shapes[name], shape, autojunk=False).ratio())
    raise UnsupportedError(
        "tokenizer.json: no pre-tokenizer of llama.cpp that quantkit knows has these rules:\n"
        f"  met:     {shape}\n  nearest: {shapes[nearest]} ({nearest})\n"
        "If llama.cpp has a name for them, or the nearest will do, say so in the recipe: "
        f"`tokenizer: {{pre: {nearest}}}`"
    )


def get(name: str) -> Pre:
    """The rules of a name in tokenizer.ggml.pre. Raises UnsupportedError."""
    for first, pre in TABLE.items():
        if name == first or name in pre.also:
            return pre
    known = sorted({*TABLE, *(name for pre in TABLE.values() for name in pre.also)})
    raise UnsupportedError(f"tokenizer.ggml.pre {name!r} is not supported; supported: {', '.join(known)}")


def encode(name: str) -> dict[str, Any]:
    """The part of a tokenizer.json that spells out a name's rules: normalizer, pre_tokenizer, model.ignore_merges."""
    pre = get(name)
    steps = [dict(step) for step in pre.steps]
    return {
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "model": {"ignore_merges": pre.ignore_merges},
    }


def _shape(definition: Mapping[str, Any]) -> str:
    """A definition's rules as comparable text: spellings that mean the same are written the same."""
    steps = [part for step in flatten(definition.get("pre_tokenizer")) for part in _canonical(step)]
    normalizers = [step for step in flatten(definition.get("normalizer")) if step != {"type": "NFC"}]
    ignore_merges = bool(definition["model"].get("ignore_merges"))
    return json.dumps([*normalizers, *steps, {"ignore_merges": ignore_merges}], ensure_ascii=False, sort_keys=True)


def flatten(step: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A tokenizer.json component as the list of its steps, Sequences opened."""
    if not step:
        return []
    inner = step.get("pretokenizers", step.get("normalizers", step.get("processors")))
    return [dict(step)] if inner is None else [part for each in inner for part in flatten(each)]


def _canonical(step: Step) -> list[Step]:
    if step["type"] == "ByteLevel":
        words = [_split(_GPT2)] if step.get("use_regex", True) else []
        return [*words, {"type": "ByteLevel", "add_prefix_space": step.get("add_prefix_space", True)}]
    if step["type"] == "Split" and "Regex" in step["pattern"]:
        regex = step["pattern"]["Regex"].replace(_SPELT_OUT, _ANY_CASE)
        # "keep what matches" is "isolate what matches" where the expression leaves nothing over, as these do.
        kept = step["behavior"] == "Removed" and step.get("invert")
        return [_split(regex)] if kept else [{**step, "pattern": {"Regex": regex}, "invert": bool(step.get("invert"))}]
    return [step]
