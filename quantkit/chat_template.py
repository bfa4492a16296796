"""Renders a checkpoint's chat template: a program that nobody vouches for, so in jinja2's sandbox and a process of its own,
with an end to its time and memory.

The sandbox keeps a template from Python's internals and from changing what it is given; it bounds one range(), not loops within
loops, nor texts that double. Run as a module it reads a request from its standard input and answers in JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError, UnresolvedError

SECONDS = 10  # of processor time; real templates take milliseconds
PATIENCE = 60  # seconds of a busy machine's time
MEMORY = 1 << 30  # bytes of address space
LENGTH = 1 << 20  # characters of what is rendered
REMEDY = "correct the template in tokenizer_config.json, or leave it out"

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Rendering:
    """text: None where the template refused, and why."""

    text: str | None
    fault: str = ""


def render(
    template: str, conversations: Sequence[tuple[Messages, bool]], variables: Mapping[str, Any], *, clock: bool
) -> list[Rendering]:
    """The template's answer to each conversation, with or without the opening of the model's answer.

    variables: what it may use beside them, as the special tokens by name. clock: whether it is told the day. Raises SourceError
    for a template that does not end, or that wants more than MEMORY; UnresolvedError where no process can be started for it.
    """
    request = {"template": template, "conversations": list(conversations), "variables": dict(variables), "clock": clock}
    command = [sys.executable, "-P", "-m", "quantkit.chat_template"]
    here = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": here}
    try:
        child = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=PATIENCE, env=settings
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"the chat template was at work for {PATIENCE} s without an end: refused; {REMEDY}") from error
    said = (child.stderr.strip().splitlines() or [f"status {child.returncode}"])[-1]
    if child.returncode < 0 or said.startswith("MemoryError"):
        raise SourceError(f"the chat template took more than {SECONDS} s or {MEMORY >> 20} MB: refused; {REMEDY} ({said})")
    if child.returncode != 0:
        raise UnresolvedError(f"rendering the chat template ended with status {child.returncode}: {said}")
    return [Rendering(**each) for each in json.loads(child.stdout)]


def environment(clock: bool) -> Any:
    """Jinja as transformers has it for chat templates; without the clock no day gets into the texts."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    found.filters["tojson"] = _tojson
    found.globals["raise_exception"] = refuse
    if clock:
        found.globals["strftime_now"] = _today
    return found


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _today(form: str) -> str:
    return datetime.now().strftime(form)


def _compiled(template: str, clock: bool) -> Any:
    """The template; what transformers' own tag marks is written as it is. Raises TemplateError."""
    from jinja2 import TemplateError, nodes

    plain = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    plain = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", plain)
    place = environment(clock)
    named = [node.attr for node in place.parse(plain).find_all(nodes.NSRef)]
    named += [word.key for call in place.parse(plain).find_all(nodes.Call) for word in call.kwargs]
    if hidden := [name for name in named if name.startswith("_")]:
        raise TemplateError(f"a name that begins with an underscore is not for templates: {hidden[0]}")
    return place.from_string(plain)


def _answers(request: Mapping[str, Any]) -> list[dict[str, str | None]]:
    from jinja2 import TemplateError

    faults = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
    try:
        template = _compiled(request["template"], request["clock"])
    except faults as error:
        return [{"text": None, "fault": _said(error)} for _ in request["conversations"]]
    found: list[dict[str, str | None]] = []
    for messages, opening in request["conversations"]:
        try:
            text = template.render(messages=messages, add_generation_prompt=opening, **request["variables"])
        except faults as error:
            found.append({"text": None, "fault": _said(error)})
            continue
        long = len(text) > LENGTH
        found.append({"text": None if long else text, "fault": f"it writes {len(text):,} characters" if long else ""})
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _limit() -> None:
    """An end to this process's time and memory, where the system offers one."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    _limit()
    sys.stdout.write(json.dumps(_answers(json.load(sys.stdin))))
