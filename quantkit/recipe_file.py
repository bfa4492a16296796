"""A recipe's text: YAML in, a validated recipe out, or every fault at once with its file and line."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from quantkit.errors import RecipeError
from quantkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe with its name and its text as typed."""

    name: str
    text: str
    recipe: Recipe

    def with_source(self, source: str) -> Document:
        """The same recipe for another source; its text says so."""
        text = f"# source given on the command line: {source}\n{self.text}"
        return Document(self.name, text, self.recipe.model_copy(update={"source": source}))


def read(path: Path) -> Document:
    """A recipe file. Raises RecipeError with every fault of it, one a line, as file:line: key: what and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, [other.stem for other in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.with_name(near[0] + '.yaml')}?" if near else ""
        raise RecipeError(f"{path}: there is no such recipe{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    return parse(text, path.stem, str(path))


def without_file(source: str, format: str, type: str, out: Path | None, checks: bool) -> Document:
    """The recipe of a run that was given its source and target directly. Raises RecipeError."""
    recipe: dict[str, Any] = {"source": source, "targets": [{"format": format, "type": type}]}
    if not checks:
        recipe["checks"] = False
    if out is not None:
        recipe["publish"] = [{"folder": str(out)}]
    name = "-".join(re.findall(r"[\w.]+", source.rstrip("/").rsplit("/", 1)[-1])) or "model"
    return parse(yaml.safe_dump(recipe, sort_keys=False), f"{name}-{type}".lower(), "the call")


def parse(text: str, name: str, where: str) -> Document:
    """A recipe's text; `where` names it in messages."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{where}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {error}") from error
    try:
        faults = [f"{where}:{line}: {key}: given twice; keep one" for line, key in _repeated(root)]
    except RecursionError as error:
        raise RecipeError(f"{where}: an alias (*) stands inside what its anchor (&) names; write it out") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{where}:1: a recipe is a mapping with at least `source` and `targets`, this is {_kind(data)}")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults += [_fault(where, root, item) for item in error.errors()]
        recipe = None
    if faults or recipe is None:
        raise RecipeError("\n".join(sorted(set(faults), key=_line_of)))
    return Document(name=name, text=text, recipe=recipe)


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _line_of(fault: str) -> tuple[int, str]:
    parts = fault.split(":")
    return next((int(part) for part in parts[1:] if part.isdigit()), 0), fault


def _repeated(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _fault(where: str, root: yaml.Node | None, item: Any) -> str:
    location: tuple[int | str, ...] = item["loc"]
    line, path = _locate(root, location)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _keys_at(Recipe, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        message = "unknown key" + (f"; did you mean {near[0]}?" if near else "") + f" (known: {', '.join(known)})"
    elif item["type"] == "literal_error":
        choices = {choice.casefold(): choice for choice in _choices(item)}
        near = difflib.get_close_matches(str(item["input"]).casefold(), choices, n=1, cutoff=0.5)
        message = f"{item['input']!r} is not one of {item['ctx']['expected']}"
        message += f"; did you mean {choices[near[0]]}?" if near else ""
    elif item["type"] == "missing":
        message = "required and missing"
    elif isinstance(item.get("input"), str | int | float | bool):
        message += f" (got {item['input']!r})"
    message = message.replace("valid tuple", "valid list")
    return f"{where}:{line}: {path or 'recipe'}: {message}"


def _choices(item: Any) -> list[str]:
    return [part.strip(" '") for part in item["ctx"]["expected"].replace(" or ", ",").split(",")]


def _locate(root: yaml.Node | None, location: Sequence[int | str]) -> tuple[int, str]:
    """Line (from 1) of the deepest node on a pydantic location, and the location as a dotted path."""
    node, line, path = root, 1, ""
    for part in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line, path = node.start_mark.line + 1, f"{path}[{part}]"
        elif isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None and not _names_a_key(part):
                continue  # a union's tag in the location, not a key of the document
            path = f"{path}.{part}" if path else str(part)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
    return line, path


def _names_a_key(part: int | str) -> bool:
    return isinstance(part, str) and not part.startswith("literal[") and not part[:1].isupper()


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            model = inner if inner is not None else model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, types.UnionType):
        return next((model for item in get_args(annotation) if (model := _model_in(item)) is not None), None)
    return None
