"""One run of one recipe: how it is asked for, and what every step of it is given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from quantkit.errors import InputError
from quantkit.formats.onnx import graphs
from quantkit.formats.onnx.graph import Graph
from quantkit.recipe import Recipe
from quantkit.report import machine
from quantkit.values import Progress, Snapshot


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; nothing here changes an artefact's bytes."""

    work_dir: Path = Path("build")
    threads: int = 0  # 0: one per core
    only: tuple[str, ...] = ()  # names or types of targets; none: all
    force: bool = False  # keep nothing of earlier runs
    sign_key: Path | None = None  # a private key that signs what is published

    @property
    def workers(self) -> int:
        if self.threads < 0:
            raise InputError(f"threads = {self.threads}: give their number, or 0 for one per core")
        return self.threads or machine.cores()

    def folder(self, name: str) -> Path:
        """Where the recipe of this name is made."""
        return self.work_dir / name


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Job:
    """recipe: what is wanted. snapshot: the checkpoint, fetched. work: the locked build folder. threads: at least one.
    exported: what `graphs` made."""

    recipe: Recipe
    snapshot: Snapshot
    work: Path
    threads: int
    progress: Progress
    exported: list[tuple[Graph, ...]] = field(default_factory=list, repr=False, compare=False)

    def graphs(self) -> tuple[Graph, ...]:
        """The model's ONNX graphs, made once for all steps: an export takes longer than what is done with it."""
        if not self.exported:
            self.exported.append(graphs.build(self.snapshot))
        return self.exported[0]

    def labelled(self, label: str) -> Job:
        """The same job, its progress named after a target: one step runs for several."""

        def progress(what: str, done: float, total: float) -> None:
            self.progress(f"{what} {label}", done, total)

        return replace(self, progress=progress)
