"""What a run takes: seconds and peak memory of its stages, seconds of its checks, and the most that its folder held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantkit import memory
from quantkit.manifest import CostRecord, StageRecord
from quantkit.values import CheckResult

LOOK_SECONDS = 0.5  # between looks at the folder, whose temporary files come and go


@dataclass(slots=True)
class Meter:
    """The stages of one run as they end, and the most bytes that its folder has held."""

    work: Path
    stages: list[StageRecord] = field(default_factory=list)
    disk: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        memory.reset_peak()
        began = time.perf_counter()
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
        self.stages.append(StageRecord(name=name, seconds=time.perf_counter() - began, peak_rss_bytes=memory.peak()))

    def record(self, peaks: Iterator[int]) -> CostRecord:
        """With the peaks of artefacts, whose writers count anew each."""
        peak = max([*(stage.peak_rss_bytes for stage in self.stages), *peaks])
        seconds = sum(stage.seconds for stage in self.stages)
        return CostRecord(stages=self.stages, seconds=seconds, peak_rss_bytes=peak, disk_bytes=self.disk)

    def _watch(self, ended: threading.Event) -> None:
        while True:
            self.disk = max(self.disk, _held(self.work))
            if ended.wait(LOOK_SECONDS):
                self.disk = max(self.disk, _held(self.work))
                return


@dataclass(slots=True)
class Laps:
    """The seconds of checks that follow each other: each counts from where the one before it ended.

    Checks that share a measurement (perplexity, divergence and cloze read the same logits) end together: the first has it all.
    """

    since: float = field(default_factory=time.perf_counter)

    def end(self, *results: CheckResult) -> tuple[CheckResult, ...]:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        return tuple(replace(each, seconds=0.0 if index else seconds) for index, each in enumerate(results))


def _held(folder: Path) -> int:
    """Bytes of the files in a folder, of those that go while it is looked at none."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return found
