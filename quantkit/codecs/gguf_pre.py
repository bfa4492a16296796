"""Pre-tokenizers of byte-level BPE: the name in tokenizer.ggml.pre <-> the definition in tokenizer.json.

llama.cpp compiles one set of regular expressions per name (src/llama-vocab.cpp); a tokenizer.json spells them out.
One table (gguf_pre_table.py) serves both directions. llama.cpp normalises nothing, so NFC in a definition is neither told
apart nor kept apart: text that is not in NFC meets different tokens there than in transformers, for every converter.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantkit.codecs.gguf_pre_table import ANY_CASE, GPT2, TABLE, Pre, Step, split
from quantkit.errors import UnsupportedError

_CONTRACTIONS = (  # other spellings of ANY_CASE
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"'(?i:[sdmt]|ll|ve|re)",
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
)


def find(definition: Mapping[str, Any]) -> str:
    """The name whose rules a parsed tokenizer.json spells out. Raises UnsupportedError naming the nearest.

    A name that differs in model.ignore_merges alone will do if merges make every token whole: then the flag changes nothing.
    """
    ignore_merges = bool(definition["model"].get("ignore_merges"))
    same = named(definition)
    for name in same:
        if TABLE[name].ignore_merges == ignore_merges:
            return name
    if not same:
        raise UnsupportedError(_nearest(_rules(definition)))
    if broken := _unmerged(definition["model"]):
        raise UnsupportedError(
            f"tokenizer.json: ignore_merges is {str(ignore_merges).lower()}, llama.cpp's {same[0]} has the opposite, and "
            f"{len(broken)} tokens differ by it, {broken[0]!r} among them; if that will do, say so in the recipe: "
            f"`tokenizer: {{pre: {same[0]}}}`"
        )
    return same[0]


def named(definition: Mapping[str, Any]) -> list[str]:
    """Every name of the table with a definition's rules, whatever it does with merges."""
    rules = _rules(definition)
    return [name for name in TABLE if _rules(encode(name)) == rules]


def differs(name: str) -> dict[str, str]:
    """Pre.differs of a name; nothing for one that only llama.cpp knows."""
    return next((dict(pre.differs) for first, pre in TABLE.items() if name == first or name in pre.also), {})


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


def flatten(step: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A tokenizer.json component as the list of its steps, Sequences opened."""
    if not step:
        return []
    inner = step.get("pretokenizers", step.get("normalizers", step.get("processors")))
    return [dict(step)] if inner is None else [part for each in inner for part in flatten(each)]


def _rules(definition: Mapping[str, Any]) -> list[Step]:
    """A definition's normalizers and pre-tokenizers in order: spellings that mean the same are written the same."""
    normalizers = [step for step in flatten(definition.get("normalizer")) if step != {"type": "NFC"}]
    return normalizers + [part for step in flatten(definition.get("pre_tokenizer")) for part in _canonical(step)]


def _canonical(step: Step) -> list[Step]:
    if step["type"] == "ByteLevel":
        words = [split(GPT2)] if step.get("use_regex", True) else []
        return [*words, {"type": "ByteLevel", "add_prefix_space": step.get("add_prefix_space", True)}]
    if step["type"] == "Digits":
        return [split(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")]
    if step["type"] == "Split" and "Regex" in step["pattern"]:
        regex = _spelling(step["pattern"]["Regex"])
        # "keep what matches" is "isolate what matches" where the expression leaves nothing over, as these do.
        kept = step["behavior"] == "Removed" and step.get("invert")
        return [split(regex)] if kept else [{**step, "pattern": {"Regex": regex}, "invert": bool(step.get("invert"))}]
    return [step]


def _spelling(regex: str) -> str:
    r"""One spelling of expressions that match the same: \s* takes line ends too, so one [\r\n] after it is as good as many;
    the possessive quantifiers met here stand where giving back would not help a match."""
    for other in _CONTRACTIONS:
        regex = regex.replace(other, ANY_CASE)
    regex = regex.replace("\r", r"\r").replace("\n", r"\n").replace("{1}", "").replace(r"|\s*[\r\n]+|", r"|\s*[\r\n]|")
    return re.sub(r"(?<=[\])}a-zA-Z][?*+])\+", "", regex)


def _unmerged(model: Mapping[str, Any]) -> list[str]:
    """The tokens that merges alone do not make."""
    from tokenizers.models import BPE

    engine = BPE(model["vocab"], list(pairs_of(model)))
    return [token for token in model["vocab"] if len(engine.tokenize(token)) != 1]


def pairs_of(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges in order; tokenizer.json has them as "a b" or as ["a", "b"]."""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _nearest(rules: Sequence[Step]) -> str:
    """What to say of rules that no name has."""
    shapes = {name: _rules(encode(name)) for name in TABLE}
    met = _text(rules)

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, _text(shapes[name]), met, autojunk=False).ratio()

    name = max(shapes, key=likeness)
    here, there = list(_parts(rules)), list(_parts(shapes[name]))
    only = {
        f"only in {name}": [part for part in there if part not in here],
        "only in tokenizer.json": [part for part in here if part not in there],
    }
    difference = "".join(f"\n  {where}: {' '.join(parts)}" for where, parts in only.items() if parts) or "\n  in their order"
    return (
        "tokenizer.json: no pre-tokenizer of llama.cpp that quantkit knows has these rules:\n"
        f"  met:     {met}\n  nearest: {_text(shapes[name])} ({name})\nThey differ:{difference}\n"
        f"If llama.cpp has a name for them, or the nearest will do, say so in the recipe: `tokenizer: {{pre: {name}}}`"
    )


def _text(rules: Sequence[Step]) -> str:
    return json.dumps(rules, ensure_ascii=False, sort_keys=True)


def _parts(rules: Sequence[Step]) -> Iterator[str]:
    """The steps one by one, a regular expression as its alternatives."""
    for step in rules:
        pattern = step.get("pattern", {})
        if "Regex" not in pattern:
            yield json.dumps(step, ensure_ascii=False, sort_keys=True)
            continue
        part, depth = "", 0
        for letter in pattern["Regex"]:
            depth += (letter in "([") - (letter in ")]")
            if letter == "|" and depth == 0:
                yield part
                part = ""
            else:
                part += letter
        yield part
