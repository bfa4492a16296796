"""A recipe's lock: every branch, dataset and file that it names as commits and digests. Kept beside it, and read with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantkit.errors import InputError
from quantkit.frozen import Frozen
from quantkit.recipe import SELF, Recipe
from quantkit.recipe_file import Document

SCHEMA_VERSION = 1


class Pin(Frozen):
    """What a URI of the recipe was when it was locked. digests: file name -> sha256; of a text its own under "text"."""

    uri: str
    pinned: str
    digests: dict[str, str]


class Lock(Frozen):
    """A recipe's pins: its source, its texts and its importance files."""

    schema_version: int = SCHEMA_VERSION
    quantkit: str
    source: Pin
    texts: tuple[Pin, ...]
    files: tuple[Pin, ...]

    @property
    def pins(self) -> tuple[Pin, ...]:
        return (self.source, *self.texts, *self.files)


def beside(recipe: Path) -> Path:
    """Where the lock of a recipe file lies."""
    return recipe.with_suffix(".lock")


def matrices(recipe: Recipe) -> tuple[str, ...]:
    """The importance files that a recipe names."""
    named = [target.imatrix for target in recipe.targets if target.format == "gguf" and isinstance(target.imatrix, str)]
    return tuple(dict.fromkeys(named))


def texts(recipe: Recipe) -> tuple[str, ...]:
    """The texts that a recipe names, each once."""
    return tuple(dict.fromkeys(recipe.texts()))


def apply(document: Document, recipe: Path, *, required: bool = False) -> Document:
    """The document with every URI as its lock pins it; as it is, where it has no lock.

    Raises InputError for a lock that is damaged, or of another recipe than this, and for none at all where one is `required`.
    """
    path = beside(recipe)
    if not path.is_file():
        if required:
            raise InputError(f"{recipe} has no {path.name}: make it with `quantkit lock {recipe}` and commit both")
        return document
    try:
        lock = Lock.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no lock of quantkit's ({error}); make it anew: quantkit lock {recipe}") from error
    wanted = (document.recipe.source, texts(document.recipe), matrices(document.recipe))
    if wanted != (lock.source.uri, *(tuple(pin.uri for pin in pins) for pins in (lock.texts, lock.files))):
        raise InputError(f"{path} was made of other sources or texts than {recipe} names now: quantkit lock {recipe}")
    return replace(document, recipe=pinned(document.recipe, lock), lock=lock)


def pinned(recipe: Recipe, lock: Lock) -> Recipe:
    """The recipe with every URI as the lock pins it."""
    places = {pin.uri: pin.pinned for pin in lock.texts}
    changes: dict[str, Any] = {"source": lock.source.pinned}
    if recipe.checks is not None:
        perplexity, divergence = recipe.checks.perplexity, recipe.checks.divergence
        second = places[divergence.second] if divergence.second else None
        changes["checks"] = recipe.checks.model_copy(
            update={
                "perplexity": perplexity.model_copy(update={"text": places[perplexity.text]}),
                "divergence": divergence.model_copy(update={"second": second}),
            }
        )
    if recipe.calibration is not None:
        text = recipe.calibration.text
        if isinstance(text, tuple):
            given = tuple(part.model_copy(update={"text": places.get(part.text, part.text)}) for part in text)
            changes["calibration"] = recipe.calibration.model_copy(update={"text": given})
        elif text != SELF:
            changes["calibration"] = recipe.calibration.model_copy(update={"text": places[text]})
    return recipe.model_copy(update=changes)
