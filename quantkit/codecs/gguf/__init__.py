"""GGUF tensor types, one file each, ending in CODEC; a new file is found, and tested, without any list being edited."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from quantkit import plugins
from quantkit.values import Codec


@cache
def codecs() -> Mapping[str, Codec]:
    """Every codec by its GGUF name ("Q4_K")."""
    return MappingProxyType({codec.name: codec for codec in plugins.load(__name__, Codec, "CODEC").values()})
