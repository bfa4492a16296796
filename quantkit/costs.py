"""What a run takes: seconds and peak memory of every stage, and the disk that its folder fills."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quantkit import memory
from quantkit.manifest import CostRecord, StageRecord


@dataclass(frozen=True, slots=True)
class Meter:
    """The stages of one run as they end."""

    stages: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        memory.reset_peak()
        began = time.perf_counter()
        yield
        self.stages.append(StageRecord(name=name, seconds=time.perf_counter() - began, peak_rss_bytes=memory.peak()))

    def record(self, work: Path, peaks: Iterator[int]) -> CostRecord:
        """With the peaks of artefacts, whose writers count anew each."""
        peak = max([*(stage.peak_rss_bytes for stage in self.stages), *peaks])
        disk = sum(path.lstat().st_size for path in work.rglob("*") if path.is_file())
        seconds = sum(stage.seconds for stage in self.stages)
        return CostRecord(stages=list(self.stages), seconds=seconds, peak_rss_bytes=peak, disk_bytes=disk)
