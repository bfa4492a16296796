"""A plug-in is a file in a folder that ends in one frozen value."""

from __future__ import annotations

import importlib
import pkgutil
from types import MappingProxyType
from typing import TypeVar

T = TypeVar("T")


def load(package: str, kind: type[T], constant: str) -> MappingProxyType[str, T]:
    """The value named `constant` of every module in `package`, by module name, sorted.

    A module without it, or with a value of another kind, is a programming error and raises TypeError.
    """
    folder = importlib.import_module(package)
    found: dict[str, T] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(folder.__path__)):
        value = getattr(importlib.import_module(f"{package}.{name}"), constant, None)
        if not isinstance(value, kind):
            raise TypeError(f"{package}.{name} must end in {constant}: {kind.__name__}, it has {value!r}")
        found[name] = value
    return MappingProxyType(found)
