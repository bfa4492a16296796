"""The table that ends a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quantkit.manifest import Manifest, TargetRecord
from quantkit.report.figures import MARKS, Column, figures, memory, number, quality, rate, size, times

_COLOURS = {"pass": "green", "fail": "red", "unresolved": "yellow", "unchecked": "dim"}


def heads(manifest: Manifest) -> tuple[str, ...]:
    measures = (f"{column.head[0].lower()}{column.head[1:]}" for column in quality(manifest))
    return ("file", "size", "bits/w", *measures, "prefill tok/s", "decode tok/s", "peak RSS", "verdict")


def cells(target: TargetRecord, columns: Sequence[Column]) -> tuple[str, ...]:
    """The row of one artefact, in the order of the heads."""
    f = figures(target)
    return (
        target.file,
        size(target.nbytes),
        number(target.bits_per_weight, 2),
        *(column.cell(f, error=False) for column in columns),
        _speed(f.prefill, f.prefill_ratio),
        _speed(f.decode, f.decode_ratio),
        memory(f.peak_rss) if f.peak_rss is not None else "–",
        f"{MARKS[target.verdict]} {target.verdict}",
    )


def draw(manifest: Manifest, console: Console) -> None:
    """Print the table: drawn in a terminal wide enough, lines of head and value elsewhere, so that nothing wraps."""
    if not console.is_terminal or console.width < 120:
        console.print(plain(manifest), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(_table(manifest))
    labels = sorted({target.baseline_label for target in manifest.targets if target.baseline_label})
    if labels:
        console.print(f"× is against {', '.join(labels)} in the same run", markup=False, highlight=False, soft_wrap=True)


def _table(manifest: Manifest) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads(manifest):
        table.add_column(head, justify="left" if head in ("file", "verdict") else "right", overflow="fold")
    for target in manifest.targets:
        *row, verdict = map(escape, cells(target, quality(manifest)))  # text from outside: its brackets are no markup
        table.add_row(*row, f"[{_COLOURS[target.verdict]}]{verdict}[/]")
    return table


def plain(manifest: Manifest) -> str:
    """The same without a terminal: a block of lines for every artefact."""
    names, columns = heads(manifest), quality(manifest)
    width = max(map(len, names))
    blocks = [
        "\n".join(f"{head:<{width}}  {cell}" for head, cell in zip(names, cells(target, columns), strict=True))
        for target in manifest.targets
    ]
    return "\n\n".join(blocks)


def _speed(tokens: float | None, ratio: float | None) -> str:
    return rate(tokens) if ratio is None else f"{rate(tokens)} ({times(ratio)})"
