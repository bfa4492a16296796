"""Greedy answers to fixed prompts, for a person to read: no figure replaces them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from quantkit.errors import UnresolvedError
from quantkit.values import Runner, Tokenizer


def render(tokenizer: Tokenizer, prompt: str) -> str:
    """The prompt as the chat template puts it to the model, ready for its answer; itself where there is no template.

    Raises UnresolvedError where the template refuses a single message of a user.
    """
    if tokenizer.chat_template is None:
        return prompt
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {
        name: token["content"] if isinstance(token, Mapping) else token
        for name, token in tokenizer.config.items()
        if name.endswith("_token") and isinstance(token, str | Mapping)
    }
    messages = [{"role": "user", "content": prompt}]
    try:
        rendered = render_jinja_template(
            [messages], chat_template=tokenizer.chat_template, add_generation_prompt=True, **special
        )
    except TemplateError as error:
        raise UnresolvedError(f"the chat template does not render one user's message: {error}") from error
    return str(rendered[0][0])


def answer(runner: Runner, tokenizer: Tokenizer, prompts: Sequence[str], limit: int) -> list[str]:
    """The runner's greedy answers of at most `limit` tokens. Special tokens that the template writes are parsed."""
    from tokenizers import Tokenizer as Engine

    engine = Engine.from_str(json.dumps(tokenizer.definition))
    bare = tokenizer.chat_template is None  # a template writes its own BOS
    answers = []
    for prompt in prompts:
        ids = engine.encode(render(tokenizer, prompt), add_special_tokens=bare).ids
        answers.append(engine.decode(runner.generate(ids, limit), skip_special_tokens=True).strip())
    return answers
