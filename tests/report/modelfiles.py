"""Ollama's side of a Modelfile: its grammar, and the part of Go's text/template that ours use. Independent of quantkit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COMMANDS = {"from", "license", "template", "system", "adapter", "parameter", "message", "requires"}
Message = tuple[str, str]


def parse(text: str) -> list[tuple[str, str]]:
    """(instruction, value), a parameter's under its name: docs/modelfile.mdx's grammar as parser/parser.go reads it."""
    found, rest = [], text
    while rest := rest.lstrip(" \t\r\n"):
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        word = re.match(r"[A-Za-z]+(?=[ \t])", rest)
        assert word, f"no instruction: {rest[:40]!r}"
        name, rest = word[0].lower(), rest[word.end() :].lstrip(" \t")
        assert name in COMMANDS, name
        if name == "parameter":
            word = re.match(r"[A-Za-z0-9_]+(?=[ \t])", rest)
            assert word, f"no parameter: {rest[:40]!r}"
            name, rest = word[0], rest[word.end() :].lstrip(" \t")
        value, rest = _value(rest)
        found.append((name, value))
    assert any(name == "from" for name, _ in found), "no FROM"
    return found


def _value(rest: str) -> tuple[str, str]:
    """A value ends at the first line's end where its quotes, if it has any, are closed; what does not print is dropped."""
    read = ""
    for at, letter in enumerate([*rest, "\n"]):
        if letter in "\r\n" and (value := _unquoted(read.strip())) is not None:
            return value, rest[at:]
        if letter in "\t\r\n" or letter.isprintable():
            read += letter
    raise AssertionError(f"quotes are not closed: {rest[:40]!r}")


def _unquoted(text: str) -> str | None:
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            return text[len(quotes) : -len(quotes)] if len(text) >= 2 * len(quotes) and text.endswith(quotes) else None
    return text


def values(parsed: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for found, value in parsed if found == name]


def prompt(template: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a conversation with a template (template/template.go): .System is all system messages' text."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    listed = [{"Role": role, "Content": content} for role, content in messages]
    data = {"System": system, "Messages": listed}
    tokens = iter(re.findall(r"\{\{.*?\}\}|(?:(?!\{\{).)+", template.replace('{{ "{{" }}', "\0"), re.S))
    return "".join(_run(_tree(tokens), data, {"$": data})).replace("\0", "{{")


def _tree(tokens: Iterator[str]) -> list[Any]:
    """Texts, [action], and [head, body, else body] up to the end of the block."""
    blocks: list[list[Any]] = [[]]
    open_heads: list[list[Any]] = []
    for token in tokens:
        if not token.startswith("{{"):
            blocks[-1].append(token)
            continue
        action = token[2:-2].strip()
        if action.startswith(("if ", "range ")):
            node = [action, [], []]
            blocks[-1].append(node)
            open_heads.append([node])
            blocks.append(node[1])
        elif action.startswith("else"):
            blocks[-1] = open_heads[-1][-1][2]
            if condition := action[4:].strip():
                node = [condition, [], []]
                blocks[-1].append(node)
                open_heads[-1].append(node)
                blocks[-1] = node[1]
        elif action == "end":
            open_heads.pop()
            blocks.pop()
        else:
            blocks[-1].append([action])
    assert len(blocks) == 1
    return blocks[0]


def _run(nodes: list[Any], dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif len(node) == 1:
            yield str(_evaluate(node[0], dot, names))
        elif node[0].startswith("if "):
            yield from _run(node[1] if _evaluate(node[0][3:], dot, names) else node[2], dot, names)
        else:
            variables, _, over = node[0].removeprefix("range ").rpartition(":=")
            for at, item in enumerate(_evaluate(over.strip(), dot, names)):
                index = {variables.partition(",")[0].strip(): at} if variables else {}
                yield from _run(node[1], item, names | index)


def _words(text: str) -> list[str]:
    """The words of an action; one in parentheses is one."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == " " and not depth:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def _evaluate(text: str, dot: Any, names: dict[str, Any]) -> Any:
    parts = _words(text)
    if len(parts) == 1:
        return _operand(parts[0], dot, names)
    arguments = [_operand(part, dot, names) for part in parts[1:]]
    functions = {
        "eq": lambda a, b: a == b,
        "le": lambda a, b: a <= b,
        "not": lambda a: not a,
        "and": lambda *all: all[0] and all[-1],
        "len": len,
        "slice": lambda a, b: a[b:],
    }
    return functions[parts[0]](*arguments)


def _operand(text: str, dot: Any, names: dict[str, Any]) -> Any:
    if text.startswith("("):
        return _evaluate(text[1:-1], dot, names)
    if text.startswith('"'):
        return text[1:-1]
    if text.isdigit():
        return int(text)
    variable, _, name = text.partition(".")
    value = names[variable] if variable else dot
    return value[name] if name else value


_GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var cases []struct {
		Template string
		System   string
		Messages []*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	var said []string
	for _, c := range cases {
		out := &written{}
		t := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
		if err := t.Execute(out, map[string]any{"System": c.System, "Messages": c.Messages, "Response": ""}); err != nil {
			panic(err)
		}
		said = append(said, string(out.bytes))
	}
	json.NewEncoder(os.Stdout).Encode(said)
}

type written struct{ bytes []byte }

func (w *written) Write(p []byte) (int, error) { w.bytes = append(w.bytes, p...); return len(p), nil }
"""


def prompts_in_go(folder: Path, cases: Sequence[tuple[str, Sequence[Message]]]) -> list[str] | None:
    """The same by Go itself; None where it is not installed."""
    program = shutil.which("go")
    if program is None:
        return None
    (folder / "main.go").write_text(_GO)
    given = [
        {
            "Template": template,
            "System": "\n\n".join(content for role, content in messages if role == "system"),
            "Messages": [{"Role": role, "Content": content} for role, content in messages],
        }
        for template, messages in cases
    ]
    environment = {"GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "HOME": str(folder), "PATH": "/usr/bin:/bin"}
    command = [program, "run", "main.go"]
    ran = subprocess.run(command, cwd=folder, input=json.dumps(given), text=True, capture_output=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return list(json.loads(ran.stdout))
