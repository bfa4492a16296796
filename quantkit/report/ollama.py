"""The Modelfile for Ollama, in the grammar of its docs/modelfile.mdx, as parser/parser.go reads it. Pure functions to text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quantkit.codecs import gguf_special
from quantkit.manifest import Manifest, TargetRecord
from quantkit.report import chat
from quantkit.report import figures as fig
from quantkit.values import Tokenizer

_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
_QUOTES = '"""'


def modelfile(manifest: Manifest, tokenizer: Tokenizer | None, generation: Mapping[str, Any], licences: Iterable[str]) -> str:
    """A Modelfile for the first GGUF that passed (or the first).

    generation: with the ids of the tokens that end an answer, as generation_config.json has them. licences: texts. The
    chat template is said in Go where its form is known, for Ollama puts a plain one in the place of a Jinja template that
    it does not know. num_ctx is the largest context up to 8,192 that runs on a machine of 8 GB.
    """
    ggufs = [target for target in manifest.targets if target.format == "gguf"]
    chosen = next((target for target in ggufs if target.verdict == "pass"), ggufs[0])
    context = min(8192, fig.fits(chosen).get(8) or 2048, manifest.source.context_length)
    form = _form(tokenizer)
    template = chat.go(form) if form else None
    if template is not None and not _quotable(template):
        form = template = None
    lines = ["# Written from the files beside it; Ollama itself was not run on them.", *_files(chosen, ggufs)]
    lines += [f"# {_about(tokenizer, form)}", *([f"TEMPLATE {_quoted(template)}"] if template else [])]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops(tokenizer, generation, form)]
    lines.append(f"PARAMETER num_ctx {context}")
    lines += [f"LICENSE {_quoted(_harmless(text))}" for text in licences]
    return "\n".join(lines) + "\n"


def stops(tokenizer: Tokenizer | None, generation: Mapping[str, Any], form: chat.Form | None) -> list[str]:
    """What ends an answer: the tokens that the checkpoint names, and the markers of the turns around it, in a fixed order."""
    if tokenizer is None:
        return []
    named = generation.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    texts = _tokens(tokenizer, {id for id in ids if isinstance(id, int)})
    found = [gguf_special.content(tokenizer.config.get("eos_token")), *(texts[id] for id in ids if id in texts)]
    if form:
        markers = [marker for text in (*form.user, form.assistant[1]) for marker in _MARKER.findall(text)]
        found += markers or [form.user[0].strip()]
    return [stop for stop in dict.fromkeys(found) if stop and _quotable(stop)]


def _files(chosen: TargetRecord, ggufs: Iterable[TargetRecord]) -> Iterator[str]:
    yield f"FROM ./{chosen.file}"
    if len(chosen.files) > 1:
        yield f"# one of {len(chosen.files)} parts: where Ollama wants one file, llama-gguf-split --merge joins them"
    yield from (f"# also in this folder: {target.file}" for target in ggufs if target is not chosen)


def _about(tokenizer: Tokenizer | None, form: chat.Form | None) -> str:
    if tokenizer is None or tokenizer.chat_template is None:
        return "The model has no chat template."
    if form is None:
        return "No TEMPLATE: the model's chat template, which is in the GGUF, has no form that could be said in Go."
    said = "The model's chat template in Go, with the same prompts for system, user and assistant, and without tools."
    if form.place == "none":
        said = f"{said} The model's has no place for a system message: one that is given goes before the first question."
    if "strftime_now" in tokenizer.chat_template:
        said = f"{said} Where the model's writes the day's date, this has the one that it falls back on."
    return said


def _form(tokenizer: Tokenizer | None) -> chat.Form | None:
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    named = {name: gguf_special.content(token) for name, token in tokenizer.config.items() if name.endswith("_token")}
    special = {name: text for name, text in named.items() if text is not None}
    bos = special.get("bos_token", "")
    return chat.form(tokenizer.chat_template, special, bos if gguf_special.begins(tokenizer, bos) else "")


def _tokens(tokenizer: Tokenizer, ids: set[int]) -> dict[int, str]:
    """Id -> text, of added tokens and of the vocabulary."""
    listed = tokenizer.definition["model"].get("vocab") or {}
    pairs = ((id, text) for text, id in listed.items()) if isinstance(listed, Mapping) else enumerate(row[0] for row in listed)
    found = {id: text for id, text in pairs if id in ids}
    added = tokenizer.definition.get("added_tokens") or []
    return found | {token["id"]: token["content"] for token in added if token["id"] in ids}


def _quoted(text: str) -> str:
    """A value in quotes: in three where it has lines or quotes of its own."""
    return f"{_QUOTES}{text}{_QUOTES}" if "\n" in text or '"' in text else f'"{text}"'


def _quotable(text: str) -> bool:
    """The grammar has no escape: three quotes would end the value, and what does not print is dropped."""
    return text == _harmless(text)


def _harmless(text: str) -> str:
    """The text with three quotes as three apostrophes, and without what does not print."""
    lines = text.replace("\r\n", "\n").replace(_QUOTES, "'''").split("\n")
    return "\n".join("".join(letter for letter in line if letter == "\t" or letter.isprintable()) for line in lines)
