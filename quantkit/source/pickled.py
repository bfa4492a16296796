"""pytorch_model*.bin: pickled weights, loaded only as torch's weights_only, which runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np

from quantkit.errors import SourceError, UnsupportedError
from quantkit.source import documents, folder
from quantkit.values import F32, TensorInfo

_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


class PickledTensors:
    """Weights over torch tensors that map their files."""

    def __init__(self, infos: Mapping[str, TensorInfo], tensors: Mapping[str, Any], files: tuple[Path, ...]) -> None:
        self.infos = infos
        self.files = files
        self._tensors = dict(tensors)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        tensor = self._tensors[name]
        if tensor.ndim > 2 and (start, stop) != (0, None):
            tensor = tensor.reshape(-1, tensor.shape[-1])
        return np.array(tensor[start:stop].float().numpy(), dtype=np.float32)

    def close(self) -> None:
        self._tensors.clear()


def _refuse_packed(path: Path) -> None:
    """Raise UnsupportedError for a compressed entry, which may grow without end, BadZipFile for what is no archive."""
    with ZipFile(path) as archive:
        if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != ZIP_STORED]:
            raise UnsupportedError(
                f"{path.name}: {packed[0]!r:.80} is compressed, which torch never writes: refused. Use safetensors"
            )


def _named(loaded: Any, name: str) -> dict[str, Any]:
    import torch

    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UnsupportedError(f"{name} holds something other than tensors by their names; save the model's state_dict")
    return {str(key): value for key, value in loaded.items()}


def load(place: Path, config: Mapping[str, Any]) -> PickledTensors:
    """The .bin weights in a folder. Raises SourceError, UnsupportedError."""
    import torch

    single, index = folder.PICKLED
    listing = documents.read_json(place / index)
    names = [single] if (place / single).is_file() else sorted(set(folder.shards_of(listing, index).values()))
    if absent := [name for name in names if not (place / name).is_file()]:
        raise SourceError(f"{index} names shards that are not there: {', '.join(absent)}; fetch them again")
    tensors: dict[str, Any] = {}
    for name in names:
        try:
            _refuse_packed(place / name)
            tensors |= _named(torch.load(place / name, map_location="cpu", weights_only=True, mmap=True), name)
        except UnpicklingError as error:
            raise UnsupportedError(
                f"{name} is pickled and holds more than tensors, so loading it could run code: refused. "
                "Use a safetensors checkpoint, or load and save it as one where you trust it"
            ) from error
        except (RuntimeError, ValueError, EOFError, BadZipFile) as error:
            raise SourceError(
                f"{name} cannot be mapped as a torch checkpoint: truncated, damaged, or saved before torch 1.6; "
                f"fetch it again or save it as safetensors ({str(error).splitlines()[0]})"
            ) from error
    infos = {
        name: TensorInfo(name, tuple(value.shape), _DTYPES.get(str(value.dtype), str(value.dtype)), value.nbytes)
        for name, value in tensors.items()
    }
    presented = folder.select(config, infos)
    if presented.packed:
        raise UnsupportedError(f"{names[0]}: a quantised checkpoint is read from safetensors only; load it and save it as such")
    kept = presented.infos
    return PickledTensors(kept, {name: tensors[name] for name in kept}, tuple(place / name for name in names))
