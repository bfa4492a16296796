"""One run of one recipe: what every step of it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.recipe import Recipe
from quantkit.values import Progress, Snapshot


@dataclass(frozen=True, slots=True)
class Job:
    """recipe: what is wanted. snapshot: the checkpoint, fetched. work: the locked build folder. threads: at least one."""

    recipe: Recipe
    snapshot: Snapshot
    work: Path
    threads: int
    progress: Progress

    def labelled(self, label: str) -> Job:
        """The same job, its progress named after a target: one step runs for several."""

        def progress(what: str, done: float, total: float) -> None:
            self.progress(f"{what} {label}", done, total)

        return replace(self, progress=progress)
