"""A recipe's text: YAML in, a validated recipe out, or every fault at once with its file and line."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from quantkit.errors import InputError, RecipeError
from quantkit.recipe import Recipe

if TYPE_CHECKING:
    from quantkit.recipe_lock import Lock


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe with its name and its text as typed. lock: of recipe_lock, where the recipe is locked."""

    name: str
    text: str
    recipe: Recipe
    lock: Lock | None = None

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


def of_call(
    path: Path | None, source: str | None, *, format: str, type: str | None, out: Path | None, checks: bool
) -> Document:
    """What a call asks for: a recipe's file, for another source where one is given, or a source and the type to make of it.

    Raises RecipeError, and InputError for what the recipe says and the call says again.
    """
    if path is None:
        if source is None or type is None:
            raise InputError("give a recipe (.yaml), or a source and the type to make of it, e.g. Q4_K_M")
        return without_file(source, format, type, out, checks)
    if type is not None or out is not None or not checks:
        raise InputError(
            f"{path} is a recipe: its targets, publish and checks say what type, out and no checks would; change it"
        )
    document = read(path)
    return document if source is None else document.with_source(source)


def without_file(source: str, format: str, type: str, out: Path | None, checks: bool) -> Document:
    """The recipe of a run that was given its source and target directly. Raises RecipeError."""
    recipe: dict[str, Any] = {"source": source, "targets": [_target(format, type)]}
    if format == "gptq":
        recipe["calibration"] = {}
    if not checks:
        recipe["checks"] = False
    if out is not None:
        recipe["publish"] = [{"folder": str(out)}]
    name = "-".join(re.findall(r"[\w.]+", source.rstrip("/").rsplit("/", 1)[-1])) or "model"
    return parse(yaml.safe_dump(recipe, sort_keys=False), f"{name}-{type}".lower(), "the call")


def _target(format: str, type: str) -> dict[str, Any]:
    """A target of a format by the name of its type: Q4_K_M of gguf; W4G128, W3G64-asym, W8 of gptq; INT8, INT4B32Z of onnx."""
    if format == "onnx":
        said = re.fullmatch(r"int(\d+)(?:b(\d+))?(z?)(?:-(blocks|dynamic))?", type, re.IGNORECASE)
        if said is None:
            raise InputError(f"type {type!r} is none of onnx's: INT8 or INT4, INT8B64 (block), INT4Z (zeros), INT8-dynamic")
        bits, block, zeros, scheme = said.groups()
        target = {"bits": int(bits), "block": block and int(block), "sym": not zeros, "scheme": scheme and scheme.lower()}
        return {"format": format, **{key: value for key, value in target.items() if value is not None}}
    if format != "gptq":
        return {"format": format, "type": type}
    found = re.fullmatch(r"w(\d+)(?:g(-?\d+))?(-asym)?", type, re.IGNORECASE)
    if found is None:
        raise InputError(f"type {type!r} is none of gptq's: W4G128 (bits and group), W4 (whole rows), W4G128-asym")
    return {"format": format, "bits": int(found[1]), "group": int(found[2] or -1), "sym": found[3] is None}


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
    elif item["type"] == "union_tag_invalid":
        message = f"{item['ctx']['tag']!r} is not one of {item['ctx']['expected_tags']}"
        path = f"{path}.format"
    elif item["type"] == "union_tag_not_found":
        message, path = "required and missing", f"{path}.format"
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
            tag = any((key.value, value.value) == ("format", part) for key, value in node.value)
            if tag or (found is None and not _names_a_key(part)):
                continue  # a union's tag in the location, not a key of the document
            path = f"{path}.{part}" if path else str(part)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
    return line, path


def _names_a_key(part: int | str) -> bool:
    return isinstance(part, str) and not part.startswith("literal[") and not part[:1].isupper()


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    models = [model]
    for part in location:
        held = [each for each in models if isinstance(part, str) and part in each.model_fields]
        tagged = [each for each in models if part in _tags(each)]
        if held:
            models = _models_in(held[0].model_fields[str(part)].annotation) or models
        elif tagged:
            models = tagged
    return list(models[0].model_fields)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The tags that tell this model from others of its union."""
    return get_args(model.model_fields["format"].annotation) if "format" in model.model_fields else (model.__name__,)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, list, Union, types.UnionType, Annotated):
        return [model for item in get_args(annotation) for model in _models_in(item)]
    return []
