"""File names by the GGUF naming convention: <BaseName>-<SizeLabel>[-<FineTune>]-<Version>-<Encoding>.gguf.

Source: ggml, docs/gguf.md. Downloaders find the encoding as the last part before the extension.
"""

from __future__ import annotations

import re
from pathlib import Path

from quantkit.values import Snapshot

FIRST_RELEASE = "v1.0"  # what the convention assumes of a model that names no version
_ENCODING = re.compile(r"([-.](I?Q\d\w*|TQ\d\w*|F16|F32|BF16|MXFP4))?\.gguf$", re.IGNORECASE)


def file_name(model: str, parameters: int, encoding: str, mark: str = "") -> str:
    """The artefact's file name. model: "SmolLM2-135M-Instruct" or "org/name"; parameters: their number, for a missing label;
    mark: what tells it from another file of this encoding, in the place of a fine-tune's name."""
    import gguf

    clean = re.sub(r"[^A-Za-z0-9.]+", "-", model.split("/")[-1]).strip("-.") or "model"
    _, _, base, finetune, version, size = gguf.Metadata.get_model_id_components(clean, parameters)
    tuned = "-".join(word for word in (finetune, mark) if word) or None
    name = gguf.naming_convention(
        None, base or clean, tuned, version or FIRST_RELEASE, size or size_label(parameters), encoding, model_type=None
    )
    return f"{name}.gguf"


def size_label(parameters: int) -> str:
    """135M, 1.1B, 7B: the convention's label for a dense model."""
    import gguf

    return str(gguf.size_label(parameters, parameters, 0, 0))


def model_name(snapshot: Snapshot) -> str:
    """The model's name in file names: the repository's, the file's without its encoding, or the folder's."""
    if snapshot.repo and snapshot.kind == "hub":
        return snapshot.repo
    last = Path(snapshot.uri.rstrip("/").rsplit("://", 1)[-1]).resolve().name
    return _ENCODING.sub("", last) if snapshot.kind == "gguf" else last
