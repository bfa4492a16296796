"""What a folder for transformers holds of its source beside the weights."""

from __future__ import annotations

import json
from typing import Any

from quantkit.errors import SourceError
from quantkit.values import Snapshot


def carried(snapshot: Snapshot, config: dict[str, Any] | None = None) -> dict[str, str]:
    """Configuration, generation settings, tokenizer and licence: file name -> text. config: in place of the source's.

    Raises SourceError where there is no tokenizer.
    """
    config = config or {key: value for key, value in snapshot.config.items() if key != "quantization_config"}
    found: dict[str, Any] = {"config.json": config}
    if snapshot.generation_config:
        found["generation_config.json"] = dict(snapshot.generation_config)
    if snapshot.tokenizer is None:
        raise SourceError(f"{snapshot.uri} has no tokenizer to go with the artefact")
    tokenizer = dict(snapshot.tokenizer.config)
    if snapshot.tokenizer.chat_template is not None:
        tokenizer["chat_template"] = snapshot.tokenizer.chat_template
    found["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer}
    found["tokenizer.json"] = dict(snapshot.tokenizer.definition)
    return {name: text(value) for name, value in found.items()} | dict(snapshot.licence.files)


def text(document: Any) -> str:
    """A document as it is written."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
