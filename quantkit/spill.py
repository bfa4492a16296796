"""What GPTQ's lanes leave on disk as they go: every matrix's codes, and how it was solved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import workspace
from quantkit.values import F32, U8

FEW = 128  # tokens; a matrix that met fewer is rounded to nearest


@dataclass(frozen=True, slots=True)
class Record:
    """How a matrix was solved. loss: of its output on the calibration text, relative to the output's own energy."""

    tokens: int
    damping: float
    dead_columns: int
    loss: float
    codes: str  # sha256
    kept: str = "gptq"  # or "search", where its codes did better on inputs held out
    held_out: tuple[float, float] = (-1.0, -1.0)  # relative output errors there, of gptq's codes and of the search's


@dataclass(frozen=True, slots=True)
class Codes:
    """A target's solved matrices: files of packed tensors in `folder`, by the file's name the rows that it holds."""

    folder: Path

    def read(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        from safetensors import safe_open

        stem = name.removesuffix(".weight")
        with safe_open(self._file(name), "numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.rpartition(".")[0] == stem}  # noqa: SIM118

    def solved(self, name: str) -> tuple[U8, F32, U8] | None:
        """Codes (rows, width), scales and zeros (rows, groups) of a matrix; None of one that was not to be solved."""
        if not self.holds(name):
            return None
        found = {key.rpartition(".")[2]: array for key, array in self.read(name).items()}
        return found["codes"], found["scales"], found["zeros"]

    def stored(self, name: str) -> U8 | None:
        """A matrix as its GGUF type's bytes (rows, row bytes); None of one that was not to be solved."""
        return next(iter(self.read(name).values())) if self.holds(name) else None

    def record(self, name: str) -> Record:
        from safetensors import safe_open

        with safe_open(self._file(name), "numpy") as file:
            return Record(**json.loads(file.metadata()["record"]))

    def write(self, name: str, tensors: Mapping[str, np.ndarray[Any, Any]], record: Record) -> None:
        from safetensors.numpy import save_file

        with workspace.replacing(self._file(name)) as temporary:
            save_file(dict(tensors), temporary, {"record": json.dumps(asdict(record))})

    def holds(self, name: str) -> bool:
        return self._file(name).is_file()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.removesuffix('.weight')}.safetensors"
