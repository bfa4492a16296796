"""The plan: every tensor's fate with its reason, exact sizes, and what the run will need, before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from quantkit.errors import InputError, ResourceError, UnresolvedError
from quantkit.targets import GgufTarget, GptqTarget, OnnxTarget, Target
from quantkit.values import CheckResult, Row


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file to be and the tensors in it. `nbytes` is its size to the byte, or None when its metadata is not known yet."""

    name: str
    rows: tuple[Row, ...]
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """One artefact to be: a file, or several where it is split."""

    target: Target
    digest: str  # of the recipe's values that determine the bytes
    files: tuple[FilePlan, ...]
    bits_per_weight: float  # of the tensors alone
    choice: CheckResult | None = None  # how the types were chosen, where they were measured for a size
    mark: str = ""  # what tells it from the recipe's others of its type: see targets.mark

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def gguf(self) -> GgufTarget:
        """The target of a GGUF plan."""
        assert isinstance(self.target, GgufTarget)
        return self.target

    @property
    def gptq(self) -> GptqTarget:
        """The target of a GPTQ plan, or of one whose codes its engine chooses."""
        return self.target if isinstance(self.target, GptqTarget) else self.target.solver

    @property
    def onnx(self) -> OnnxTarget:
        """The target of an ONNX plan."""
        assert isinstance(self.target, OnnxTarget)
        return self.target

    @property
    def solved(self) -> bool:
        """Whether GPTQ's engine chooses its codes."""
        return isinstance(self.target, GptqTarget) or self.target.codes == "gptq"

    @property
    def weighed(self) -> bool:
        """Whether what calibration saw weighs its errors."""
        return not isinstance(self.target, GptqTarget) and self.target.imatrix is True

    @property
    def file(self) -> str:
        """The one to open."""
        return self.files[0].name

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for file in self.files for row in file.rows)

    @property
    def nbytes(self) -> int | None:
        """Of all files."""
        return sum(file.nbytes or 0 for file in self.files) if all(file.nbytes for file in self.files) else None

    @property
    def fallbacks(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.fallback)


@dataclass(frozen=True, slots=True)
class Needs:
    """What the run takes, in bytes and seconds. Estimates, but for the download."""

    download: int
    disk: int
    memory: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that stops the run, and the remedy."""

    kind: str  # engine, memory, disk, weights, tokenizer, publish, strict, context
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    recipe: str
    source: str
    commit: str | None
    architecture: str
    parameters: int
    reconstructed: bool
    targets: tuple[TargetPlan, ...]
    needs: Needs
    notes: tuple[str, ...]
    missing: tuple[Missing, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `quantkit plan --json`; each row says whether it is a fallback."""
        return asdict(replace(self, targets=())) | {"targets": [_as_json(target) for target in self.targets]}


def _as_json(plan: TargetPlan) -> dict[str, Any]:
    rows = [asdict(row) | {"fallback": row.fallback} for row in plan.rows]
    files = [{"name": file.name, "nbytes": file.nbytes, "tensors": len(file.rows)} for file in plan.files]
    sizes = {"file": plan.file, "files": files, "nbytes": plan.nbytes, "bits_per_weight": plan.bits_per_weight}
    return {"name": plan.name, **plan.target.model_dump(), **sizes, "digest": plan.digest, "rows": rows}


def bits_per_weight(rows: Iterable[Row]) -> float:
    """Stored bits over weights; tensors that the format adds count as bytes, not as weights."""
    nbytes = weights = 0
    for row in rows:
        nbytes += row.nbytes
        if row.source is not None:
            weights += math.prod(row.shape)
    return 8 * nbytes / max(weights, 1)


def shortages(needs: Needs, folder: Path, *, memory: int) -> list[Missing]:
    """Disk and memory that are not there. `folder` need not exist yet; `memory` is what this machine has, bytes."""
    free = free_disk(folder)
    found = []
    if needs.disk > free:
        found.append(
            Missing(
                "disk",
                f"{folder} has {size(free)} free and the run needs {size(needs.disk)}; use --work-dir on a larger disk",
            )
        )
    if needs.memory > memory:
        found.append(
            Missing("memory", f"the run needs about {size(needs.memory)} of memory and this machine has {size(memory)}")
        )
    return found


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of `folder`, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    return psutil.disk_usage(str(existing)).free


def refuse(plan: Plan) -> None:
    """Raise what stops the run, all of it in one message: ResourceError, UnresolvedError (exit 4) for an engine, InputError."""
    if not plan.missing:
        return
    message = "\n".join(missing.message for missing in plan.missing)
    kinds = {missing.kind for missing in plan.missing}
    if kinds & {"strict", "weights", "tokenizer", "publish", "context", "checks"}:
        raise InputError(message)
    raise UnresolvedError(message) if kinds == {"engine"} else ResourceError(message)


def size(nbytes: float) -> str:
    """Bytes as a person reads them, in powers of 1000: 98.4 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}" if nbytes < 100 * scale else f"{nbytes / scale:.0f} {unit}"
    return f"{nbytes:.0f} B"
