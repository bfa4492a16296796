"""What a tokenizer adds to a vocabulary: special tokens' ids, what begins and ends a text, chat templates; both ways.

Rules as in gguf-py's SpecialVocab, which llama.cpp's converter uses.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from quantkit.codecs.gguf_kv import KeyValue
from quantkit.values import Tokenizer

GGML = "tokenizer.ggml."
SPECIAL = {  # tokenizer_config.json's name -> GGUF's (the spelling is GGUF's)
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_FILLING = {  # Code Llama's; llama.cpp finds those of other models by their text
    "prefix_token": "fim_pre_token_id",
    "suffix_token": "fim_suf_token_id",
    "middle_token": "fim_mid_token_id",
}
_TEMPLATE = "tokenizer.chat_template"
_PLAIN = frozenset(string.ascii_letters + string.digits)


def string_pair(key: str, value: str) -> KeyValue:
    return KeyValue(GGML + key, value, "STRING")


def flag(key: str, value: Any) -> KeyValue:
    return KeyValue(GGML + key, bool(value), "BOOL")


def array(key: str, value: Sequence[Any], item: str) -> KeyValue:
    return KeyValue(GGML + key, list(value), "ARRAY", item)


def number(key: str, value: int) -> KeyValue:
    return KeyValue(GGML + key, value, "UINT32")


def encode(
    tokenizer: Tokenizer, ids: Mapping[str, int], config: Mapping[str, Any], generation_config: Mapping[str, Any], size: int
) -> list[KeyValue]:
    """The pairs of a tokenizer whose tokens are `ids`, in a vocabulary of `size`."""
    found = _special_ids(tokenizer, config, ids, size)
    pairs = [number(key, token) for key, token in found.items()]
    pairs += _further_ends(generation_config.get("eos_token_id") or config.get("eos_token_id"), found, size)
    return pairs + _added_ends(tokenizer, found) + _templates(tokenizer)


def _special_ids(tokenizer: Tokenizer, config: Mapping[str, Any], ids: Mapping[str, int], size: int) -> dict[str, int]:
    """GGUF key -> id: from tokenizer_config.json's token if it is in the vocabulary, else from config.json.

    BERT's cls and sep begin and end a text: they are bos and eos where nothing else is.
    """
    model = tokenizer.definition["model"]
    said = {"unk_token": model.get("unk_token"), **tokenizer.config}
    for end, mark in (("bos_token", "cls_token"), ("eos_token", "sep_token")):
        if said.get(mark) and not said.get(end):
            said[end] = said[mark]
    found = {}
    for name, key in (SPECIAL | _FILLING | {"eot_token": "eot_token_id"}).items():
        token = ids.get(content(said.get(name)))
        if token is None and name in SPECIAL:
            token = config.get(f"{name}_id")
        if token is None and name == "unk_token":
            token = model.get("unk_id")
        if isinstance(token, list):  # Llama 3.1 has several ends; the others follow as eot, eom
            token = next(iter(token), None)
        if isinstance(token, int) and 0 <= token < size:
            found[key] = token
    return found


def content(token: Any) -> Any:
    """The text of a token as tokenizer_config.json has it, plain or with flags; None for anything else."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _further_ends(ends: Any, ids: Mapping[str, int], size: int) -> list[KeyValue]:
    """A text may end at more tokens than eos: the next two have keys of their own."""
    taken = {ids.get("eos_token_id"), ids.get("eot_token_id")}
    more = [end for end in ends if end not in taken and 0 <= end < size] if isinstance(ends, list) else []
    free = [key for key in ("eot_token_id", "eom_token_id") if key not in ids]
    return [number(key, end) for key, end in zip(free, more, strict=False)]


def _added_ends(tokenizer: Tokenizer, ids: Mapping[str, int]) -> list[KeyValue]:
    """add_bos_token always (llama.cpp's default differs by vocabulary), add_eos_token if it is said or done, and for a
    vocabulary with a separator whether one more goes between two texts (after the first one's eos).

    tokenizer_config.json decides, else what encoding a letter, and a pair of letters, adds.
    """
    said = {end: tokenizer.config.get(f"add_{end}_token") for end in ("bos", "eos")}
    pairs = []
    if None in said.values() or "seperator_token_id" in ids:
        engine = _engine(tokenizer)
        letter = engine.encode("a").ids
        bos = letter[:1] == [ids.get("bos_token_id")]
        eos = letter[-1:] == [ids.get("eos_token_id")] or None  # unsaid where it is not done: so llama.cpp has it
        said = {end: done if said[end] is None else said[end] for end, done in (("bos", bos), ("eos", eos))}
        if "seperator_token_id" in ids:
            pairs.append(flag("add_sep_token", _between(engine)[bool(eos) :] == [ids["seperator_token_id"]]))
    return [flag(f"add_{end}_token", value) for end, value in said.items() if value is not None] + pairs


def begins(tokenizer: Tokenizer, bos: str) -> bool:
    """Whether an engine that reads the GGUF puts `bos` before every text, by the rule of `encode`."""
    said = tokenizer.config.get("add_bos_token")
    return bool(bos) and bool(_engine(tokenizer).encode("a").tokens[:1] == [bos] if said is None else said)


def _between(engine: Any) -> list[int]:
    """The tokens that encoding two texts puts between them."""
    both = engine.encode("a", "a")
    grouped = groupby(zip(both.special_tokens_mask, both.ids, strict=True), itemgetter(0))
    runs = [(added, [token for _, token in run]) for added, run in grouped]
    inner = [tokens for added, tokens in runs[1:-1] if added]
    return inner[0] if inner else []


def _engine(tokenizer: Tokenizer) -> Any:
    """The tokenizers library on the definition, its merges left out: what it adds around a text does not depend on them."""
    from tokenizers import Tokenizer as Engine

    model = tokenizer.definition["model"]
    slim = {**model, "merges": []} if "merges" in model else model
    return Engine.from_str(json.dumps({**tokenizer.definition, "model": slim, "truncation": None, "padding": None}))


def _templates(tokenizer: Tokenizer) -> list[KeyValue]:
    """The chat template in force and, where several are listed by name, the others under names of letters and digits."""
    listed = tokenizer.config.get("chat_template")
    named = {item["name"]: item["template"] for item in listed} if isinstance(listed, list) else {}
    named.pop("default", None)
    named = {"".join(letter if letter in _PLAIN else "_" for letter in name): text for name, text in named.items()}
    pairs = [KeyValue(f"{_TEMPLATE}.{name}", text, "STRING") for name, text in named.items()]
    if named:
        pairs.insert(0, KeyValue("tokenizer.chat_templates", list(named), "ARRAY", "STRING"))
    if tokenizer.chat_template:
        pairs.append(KeyValue(_TEMPLATE, tokenizer.chat_template, "STRING"))
    return pairs


def settings(kv: Mapping[str, Any], tokens: Sequence[str], *, bos: bool, eos: bool | None = None) -> dict[str, Any]:
    """tokenizer_config.json of a GGUF's pairs. `bos`, `eos`: what llama.cpp adds if the file does not say."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (SPECIAL | _FILLING).items():
        if (token := kv.get(GGML + key)) is not None and token < len(tokens):
            config[name] = tokens[token]
    config["add_bos_token"] = kv.get(GGML + "add_bos_token", bos)
    if (ends := kv.get(GGML + "add_eos_token", eos)) is not None:
        config["add_eos_token"] = ends
    if GGML + "add_space_prefix" in kv:
        config["add_prefix_space"] = kv[GGML + "add_space_prefix"]
    if names := kv.get("tokenizer.chat_templates"):
        texts = {name: kv.get(f"{_TEMPLATE}.{name}", "") for name in names}
        texts = {"default": kv.get(_TEMPLATE, "")} | texts
        config["chat_template"] = [{"name": name, "template": text} for name, text in texts.items()]
    return config


def post_processor(config: Mapping[str, Any], ids: Mapping[str, int], sep: bool = False) -> dict[str, Any] | None:
    """What adds bos and eos, as tokenizer_config.json says; None if nothing does.

    Of two texts the second begins with bos too, unless it is a classifier's (BERT's): there eos, and with `sep` one more
    separator, stands between them.
    """
    before = [config["bos_token"]] if config["add_bos_token"] and "bos_token" in config else []
    after = [config["eos_token"]] if config.get("add_eos_token") and "eos_token" in config else []
    if not before + after:
        return None
    joined = "sep_token" in config

    def special(tokens: Sequence[str], segment: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": segment}} for token in tokens]

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    between = [config["sep_token"]] if joined and sep else [] if joined else before
    single = [*special(before, 0), text("A", 0), *special(after, 0)]
    pair = [*single, *special(between, 1), text("B", 1), *special(after, 1)]
    used = dict.fromkeys([*before, *after, *between])
    tokens = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in used}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def generation(kv: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json's part of a GGUF's pairs: where a text begins and every token at which it ends."""
    ends = [kv[key] for key in (f"{GGML}{end}_token_id" for end in ("eos", "eot", "eom")) if key in kv]
    found = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    return found | ({"bos_token_id": kv[GGML + "bos_token_id"]} if GGML + "bos_token_id" in kv else {})
