"""Whether this installation can do its work: each finding with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from quantkit.engines import llama_cpp
from quantkit.planning import size
from quantkit.report import machine
from quantkit.version import __version__

SMALLEST_DISK = 2_000_000_000
SMALLEST_MEMORY = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    ok: bool
    fact: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(folder: Path = Path()) -> list[Finding]:
    """Every finding about this installation and machine. `folder`: where runs will write."""
    return [*_libraries(), _engine(), _kernels(), *_machine(folder)]


def _libraries() -> Iterator[Finding]:
    yield Finding("quantkit", True, __version__)
    for package, why in (("torch", "the reference"), ("transformers", "the reference"), ("tokenizers", "texts")):
        try:
            yield Finding(package, True, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, False, f"not installed; {why} needs it", "run make setup")


def _engine() -> Finding:
    version = llama_cpp.available()
    if version is None:
        return Finding(
            "llama.cpp", False, "llama-cpp-python is not installed or its library does not load",
            "run make setup: it compiles llama.cpp for this CPU; a C++ compiler must be installed",
        )  # fmt: skip
    return Finding("llama.cpp", True, f"llama-cpp-python {version} loads")


def _kernels() -> Finding:
    """Encodes one block, so that a numba that cannot compile here is found before a run."""
    import numpy as np

    from quantkit.codecs.gguf import codecs

    codec = codecs()["Q8_0"]
    row = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 32)
    error = float(np.abs(codec.decode(codec.encode(row, None)) - row).max())
    return Finding("kernels", error < 0.01, f"numba {metadata.version('numba')} compiles", "reinstall numba: make clean setup")


def _machine(folder: Path) -> Iterator[Finding]:
    here = machine.describe()
    yield Finding("CPU", True, f"{here.cpu}, {here.cores} cores, {' '.join(here.instruction_sets) or 'no vector extensions'}")
    memory, disk = here.memory_bytes, psutil.disk_usage(str(folder.resolve())).free
    yield Finding("memory", memory >= SMALLEST_MEMORY, size(memory), f"at least {size(SMALLEST_MEMORY)} is wanted")
    yield Finding("disk", disk >= SMALLEST_DISK, f"{size(disk)} free", "free some with quantkit clean, or use --work-dir")
