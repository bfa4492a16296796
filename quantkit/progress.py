"""Progress on stderr: a bar with its time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from quantkit import values

LINE_EVERY_SECONDS = 10.0


@contextmanager
def shown(console: Console) -> Iterator[values.Progress]:
    """A `values.Progress` that draws on `console` while the block runs."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def silent(what: str, done: float, total: float) -> None:
    """Progress that nobody watches."""


def _lines(console: Console) -> values.Progress:
    started: dict[str, float] = {}
    printed: dict[str, float] = {}

    def advance(what: str, done: float, total: float) -> None:
        now = time.monotonic()
        started.setdefault(what, now)
        if done < total and now - printed.get(what, started[what]) < LINE_EVERY_SECONDS:
            return
        printed[what] = now
        spent = now - started[what]
        left = f", about {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
        console.print(f"{what}: {100 * done / max(total, 1e-9):.0f}% after {spent:.1f} s{left}", highlight=False)

    return advance
