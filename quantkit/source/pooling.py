"""How a text's embedding is made of its tokens': sentence-transformers says it beside config.json."""

from __future__ import annotations

from pathlib import Path

from quantkit.errors import SourceError, UnsupportedError
from quantkit.source import documents

MODULES = "modules.json"
FILES = (MODULES, "*_Pooling/config.json")

# In llama.cpp's names; as _try_set_pooling_type of its conversion/base.py.
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
_NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_KNOWN = ("Transformer", "Pooling", "Normalize")  # the last scales an embedding to length one, which its readers do


def read(folder: Path) -> str | None:
    """ "mean", "cls" or "last"; None for a folder that sentence-transformers did not save.

    Raises UnsupportedError for another pooling or for a module that GGUF has no place for, SourceError for damaged files.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = documents.read_any(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) and "type" in module for module in modules):
        raise SourceError(f"{MODULES} is not a list of modules; fetch it again")
    kinds = {str(module["type"]).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    if foreign := [kind for kind in kinds if kind not in _KNOWN]:
        raise UnsupportedError(f"{MODULES}: GGUF has no place for {', '.join(foreign)} after the model; supported: {_KNOWN}")
    if "Pooling" not in kinds:
        return None
    name = documents.inside(f"{kinds['Pooling']}/config.json", MODULES)
    documents.refuse_stray((folder / name).parent)
    if not (folder / name).is_file():
        raise SourceError(f"{MODULES} names {name}, which is not there; fetch it again")
    said = documents.read_any(folder / name)
    if not isinstance(said, dict):
        raise SourceError(f"{name} is not an object; fetch it again")
    mode = said.get("pooling_mode")
    on = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    found = [_MODES.get(key) for key in on] or [_NAMES.get(str(mode))]
    if len(found) != 1 or found[0] is None:
        raise UnsupportedError(f"{name}: {on or mode} is not one of llama.cpp's poolings mean, cls and last")
    return found[0]
