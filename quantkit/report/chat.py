"""A chat template's form: what it writes around the messages, learnt from what it renders, and said again in Go.

Ollama's templates are Go's text/template (docs/modelfile.mdx, docs/template.mdx), checkpoints have Jinja. Most Jinja
templates (ChatML, Llama 3, Mistral, Gemma, Phi-3 ...) come down to fixed texts around each message; these texts are cut out
of renderings of a few conversations, and counted as found only if they give the same renderings of others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from quantkit import chat_template
from quantkit.errors import SourceError

Conversation = Sequence[tuple[str, str]]  # role, content; system first or not at all, then user and assistant in turn
Place = Literal["turn", "first", "last", "none"]
Render = Callable[[Conversation, bool], str | None]  # with or without the opening of an answer; None where it is refused

_S, _U, _A, _V = "Qsystemq", "Qaskq", "Qtellq", "Qaskagainq"
_TURNS = (
    ("user", "Who are you?\nSay it."),
    ("assistant", "A model."),
    ("user", "What {{ else }}?"),
    ("assistant", "No\n\nmore."),
)
_PROOFS = tuple(
    (*system, *_TURNS, ("user", "Why?"))[: len(system) + turns]
    for system in ((), (("system", "Be brief.\nAlways."),))
    for turns in (1, 3, 5)
)


@dataclass(frozen=True, slots=True)
class Form:
    """Texts before and after each message. `opening` begins a conversation without a system message, `answer` ends all.

    place: a system message has a turn of its own, stands at the head of the first or the last question (whose own `user[0]` is
    then left out), or is not provided for.
    """

    opening: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    place: Place
    system: tuple[str, str] = ("", "")

    def render(self, conversation: Conversation) -> str:
        """The prompt for the next answer."""
        system = next((content for role, content in conversation if role == "system"), None)
        turns = [(role, content) for role, content in conversation if role != "system"]
        headed = {"first": 0, "last": len(turns) - 1}.get(self.place) if system is not None else None
        parts = [self.opening if system is None else ""]
        if system is not None and self.place == "turn":
            parts += [self.system[0], system, self.system[1]]
        for at, (role, content) in enumerate(turns):
            before, after = self.user if role == "user" else self.assistant
            head = f"{self.system[0]}{system}{self.system[1]}" if at == headed else before
            parts += [head, content, after]
        return "".join([*parts, self.answer])


def form(template: str, special: Mapping[str, str], bos: str) -> Form | None:
    """The form of a Jinja template, or None where it has none that fits what it renders.

    special: the tokens that it may use, by name (bos_token ...). bos: what the engine puts before every prompt by itself, ""
    if nothing; the form leaves it out.
    """
    render = _renderer(template, special, bos)
    found = _learnt(render)
    if found is None:
        return None
    for proof in _PROOFS:
        if proof[0][0] == "system" and found.place == "none":
            continue
        if render(proof, True) != found.render(proof):
            return None
    return found


def go(form: Form) -> str:
    """The form as a template of Ollama's: over .Messages, where a system message comes first, with .System its text.

    Where the form provides for no system message, one that is given stands before the first question, as in Ollama's own
    templates for such models.
    """
    user, assistant = [tuple(map(_literal, pair)) for pair in (form.user, form.assistant)]
    system = tuple(map(_literal, form.system))
    opening = f"{{{{ if not .System }}}}{_literal(form.opening)}{{{{ end }}}}" if form.opening else ""
    if form.place == "turn":
        turn = (
            f'{{{{ if eq .Role "system" }}}}{system[0]}{{{{ .Content }}}}{system[1]}{{{{ else if eq .Role "user" }}}}{user[0]}'
        )
        each = f"{{{{ range .Messages }}}}{turn}"
    else:
        head = f"{user[0]}{{{{ $.System }}}}\n\n" if form.place == "none" else f"{system[0]}{{{{ $.System }}}}{system[1]}"
        here = "eq (len (slice $.Messages $i)) 1" if form.place == "last" else "le $i 1"
        asked = f"{{{{ if and $.System ({here}) }}}}{head}{{{{ else }}}}{user[0]}{{{{ end }}}}"
        each = f'{{{{ range $i, $_ := .Messages }}}}{{{{ if eq .Role "user" }}}}{asked}'
    told = f'{{{{ else if eq .Role "assistant" }}}}{assistant[0]}{{{{ .Content }}}}{assistant[1]}{{{{ end }}}}{{{{ end }}}}'
    if form.place == "none":
        opening = _literal(form.opening)
    return f"{opening}{each}{{{{ .Content }}}}{user[1]}{told}{_literal(form.answer)}"


def _learnt(render: Render) -> Form | None:
    """Cut the texts out of renderings of marked messages."""
    one, three = render([("user", _U)], True), render([("user", _U), ("assistant", _A), ("user", _V)], True)
    first, turns = _cut(one, _U), _cut(three, _U, _A, _V)
    if first is None or turns is None or (first[0], first[1]) != (turns[0], turns[3]):
        return None
    head, tail, middle, again = first[0], first[1], turns[1], turns[2]
    unanswered = _cut(render([("user", _U)], False), _U)
    after = unanswered[1] if unanswered else ""
    if not after or not tail.startswith(after) or not middle.startswith(after):
        after = _common(tail, middle)
    before = again.removeprefix(after)
    if not again.startswith(after) or not head.endswith(before):
        before = _common(head[::-1], again[::-1])[::-1]
    user = (before, after)
    assistant = (middle.removeprefix(after), again.removesuffix(before))
    opening, answer = head.removesuffix(before), tail.removeprefix(after)
    found = _system(render, one, user, tail)
    return Form(opening, user, assistant, answer, *found) if found else None


def _system(render: Render, without: str | None, user: tuple[str, str], tail: str) -> tuple[Place, tuple[str, str]] | None:
    """Where a system message goes, and the texts around it; None where that has no form."""
    text = render([("system", _S), ("user", _U)], True)
    if text is None or text == without:
        return "none", ("", "")
    one = _cut(text, _S, _U)
    if one is None or one[2] != tail:
        return None
    if user[0] and one[1].endswith(user[0]):
        return "turn", (one[0], one[1].removesuffix(user[0]))
    three = render([("system", _S), ("user", _U), ("assistant", _A), ("user", _V)], True)
    return ("last" if _cut(three, _U, _A, _S, _V) else "first"), (one[0], one[1])


def _cut(text: str | None, *marks: str) -> list[str] | None:
    """The pieces between the marks; None unless each is there once, in this order."""
    if text is None or any(text.count(mark) != 1 for mark in marks):
        return None
    pieces = re.split("|".join(marks), text)
    return pieces if re.findall("|".join(marks), text) == list(marks) else None


def _common(first: str, second: str) -> str:
    """What both begin with."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(letter for letter, _ in equal)


def _asked() -> list[tuple[Conversation, bool]]:
    """Every conversation that a form is learnt from and proved by."""
    marked = [("user", _U)], [("user", _U), ("assistant", _A), ("user", _V)]
    headed = [[("system", _S), *conversation] for conversation in marked]
    return [(marked[0], False), *((conversation, True) for conversation in (*marked, *headed, *_PROOFS))]


def _renderer(template: str, special: Mapping[str, str], bos: str) -> Render:
    """What a template makes of the conversations that are asked here; without the clock, so that no day gets into the texts."""
    asked = _asked()
    given = [([{"role": role, "content": content} for role, content in each], answer) for each, answer in asked]
    try:
        found = chat_template.render(template, given, special, clock=False)
    except SourceError:
        return lambda *_: None
    texts = {(tuple(each), answer): one.text for (each, answer), one in zip(asked, found, strict=True)}

    def render(conversation: Conversation, answer: bool) -> str | None:
        text = texts[tuple(conversation), answer]
        return None if text is None else text.removeprefix(bos)

    return render


def _literal(text: str) -> str:
    """Text that a Go template writes as it is."""
    return text.replace("{{", '{{ "{{" }}')
