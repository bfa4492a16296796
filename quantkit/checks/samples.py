"""Greedy answers to fixed prompts, for a person to read: no figure replaces them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit import chat_template
from quantkit.errors import InputError, UnresolvedError
from quantkit.values import Runner, Tokenizer, Transducer


def render(tokenizer: Tokenizer, prompt: str) -> str:
    """The prompt as the chat template puts it to the model, ready for its answer; itself where there is no template.

    Raises UnresolvedError where the template refuses a single message of a user, SourceError where it does not end.
    """
    if tokenizer.chat_template is None:
        return prompt
    special = {
        name: token["content"] if isinstance(token, Mapping) else token
        for name, token in tokenizer.config.items()
        if name.endswith("_token") and isinstance(token, str | Mapping)
    }
    asked, variables = [([{"role": "user", "content": prompt}], True)], {**special, "tools": None, "documents": None}
    (found,) = chat_template.render(tokenizer.chat_template, asked, variables, clock=True)
    if found.text is None:
        raise UnresolvedError(f"the chat template does not render one user's message: {found.fault}")
    return found.text


def encode(tokenizer: Tokenizer, prompts: Sequence[str], room: int) -> list[list[int]]:
    """The prompts' tokens. Special tokens that the template writes are parsed.

    Raises InputError for a prompt without tokens or with more than `room`, UnresolvedError as `render` does.
    """
    engine = _engine(tokenizer)
    bare = tokenizer.chat_template is None  # a template writes its own BOS
    found = [engine.encode(render(tokenizer, prompt), add_special_tokens=bare).ids for prompt in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        if not 0 < len(ids) <= room:
            raise InputError(f"prompts: {prompt[:40]!r} is {len(ids)} tokens; 1 to {room} can be answered")
    return found


def answer(runner: Runner | Transducer, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], limit: int) -> list[str]:
    """The runner's greedy answers, of at most `limit` tokens, to prompts that `encode` gave."""
    engine = _engine(tokenizer)
    return [engine.decode(runner.generate(ids, limit), skip_special_tokens=True).strip() for ids in prompts]


def _engine(tokenizer: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Engine

    return Engine.from_str(json.dumps(tokenizer.definition))
