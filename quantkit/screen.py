"""What a person sees in the terminal: the plan, the doctor's findings, what can be freed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quantkit.doctor import Finding
from quantkit.manifest import Manifest
from quantkit.planning import Plan, TargetPlan, size
from quantkit.recipe_lock import Lock
from quantkit.report import figures, table
from quantkit.values import CheckResult, Row

if TYPE_CHECKING:
    from quantkit.comparing import Comparison, Difference
    from quantkit.inspecting import Inspection
    from quantkit.publishing import Outline


def show_plan(console: Console, plan: Plan) -> None:
    """Every tensor's type with its reason (blocks that share one are one line), sizes, needs, notes, what is missing."""
    origin = plan.source + (f" @ {plan.commit[:12]}" if plan.commit else "")
    console.print(
        f"[bold]{escape(plan.recipe)}[/]: {escape(origin)}, {plan.architecture}, {plan.parameters / 1e6:.1f} M weights",
        highlight=False,
    )
    for target in plan.targets:
        _show_target(console, target)
    needs = plan.needs
    console.print(
        f"needs   download {size(needs.download)}, disk {size(needs.disk)}, memory about {size(needs.memory)}, "
        f"about {duration(needs.seconds)} of this machine",
        highlight=False,
    )
    for note in plan.notes:
        console.print(f"note    {note}", highlight=False, markup=False)
    for missing in plan.missing:
        console.print(f"MISSING {missing.message}", style="red", highlight=False, markup=False)


def _show_target(console: Console, target: TargetPlan) -> None:
    nbytes = f"{target.nbytes:,} bytes exactly" if target.nbytes else "size known once the tokenizer is"
    console.print(
        f"\n[bold]{target.name}[/] -> {escape(target.file)}: {nbytes}, {target.bits_per_weight:.2f} bits per weight",
        highlight=False,
    )
    listing = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("tensor", "shape", "from", "type", "why"):
        listing.add_column(heading, overflow="fold")
    for name, rows in _grouped(target.rows):
        first = rows[0]
        kind = f"[yellow]{first.type}[/]" if first.fallback else first.type
        shape = "x".join(map(str, first.shape))
        listing.add_row(name, shape, first.source_dtype, kind, first.reason)
    console.print(listing, highlight=False)
    if target.fallbacks:
        console.print(
            f"{len(target.fallbacks)} of {len(target.rows)} tensors cannot have the type that {target.target.label} wants "
            "(yellow); strict: true makes that an error",
            highlight=False,
        )


def _grouped(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Rows that differ in the block number alone under one name: blk.{0-3,6}.attn_v.weight."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        template = re.sub(r"\.\d+\.", ".{}.", row.name, count=1)
        groups.setdefault((template, str(row.shape), row.source_dtype, row.type, row.reason), []).append(row)
    return [
        (template[0].replace("{}", _ranges([row.name for row in members])), members) for template, members in groups.items()
    ]


def _folded(names: Iterable[str]) -> str:
    """Names of tensors, those that differ in the block number alone as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".{}.", name, count=1), []).append(name)
    return ", ".join(template.replace("{}", _ranges(members)) for template, members in groups.items())


def _ranges(names: Sequence[str]) -> str:
    numbers = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return text if len(numbers) == 1 else "{" + text + "}"


def show_result(console: Console, manifest: Manifest, work: Path) -> None:
    """The closing table of a run, and where everything is."""
    table.draw(manifest, console)
    for place in manifest.published:
        hint = "" if "://" in place else f": open {place}/report.html"
        console.print(f"published to {place}{hint}", highlight=False, markup=False)
    if not manifest.published:
        console.print(f"made in {work}: open {work}/report.html", highlight=False, markup=False)


def show_inspection(console: Console, found: Inspection) -> None:
    """What it is, then a line a type: its size, and the largest context that runs on each class of machine."""
    pinned = f" @ {found.commit[:12]}" if found.commit else ""
    weights = f"{found.parameters / 1e6:,.1f} M weights"
    facts = {
        "source": f"{found.uri}{pinned}",
        "model": f"{found.name}: {found.architecture} ({found.kind}), {weights} in {found.dtypes}",
        "context": f"{found.context:,} tokens",
        "licence": f"{found.licence or 'none named'}; may a quantised copy be passed on? {found.redistribution}",
        "access": f"gated ({found.gated}): accept its terms on its page, and set HF_TOKEN" if found.gated else None,
        "on the Hub": f"{found.downloads or 0:,} downloads, {found.likes or 0:,} likes" if found.likes is not None else None,
        "download": size(found.download_bytes) if found.download_bytes else None,
    }
    for name, fact in facts.items():
        if fact is not None:
            console.print(f"{name:>10}  {fact}", highlight=False, markup=False, soft_wrap=True)
    listing = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    classes = next((form.fits for form in found.forms), {})
    asked = f"{found.memory / 2**30:.0f} GB, {found.cores} cores"
    for heading in ("format", "type", "size", "bits", asked, *(f"{gigabytes} GB" for gigabytes in classes)):
        listing.add_column(heading, justify="left" if heading in ("format", "type") else "right")
    for form in found.forms:
        about = "" if form.exact else "about "
        runs = ["no" if context is None else f"{context:,}" for context in (form.here, *form.fits.values())]
        listing.add_row(form.format, form.type, f"{about}{size(form.nbytes)}", f"{form.bits_per_weight:.2f}", *runs)
    console.print(listing, highlight=False)
    console.print(
        "under each machine: the largest context in tokens that runs there, of the engine's predicted memory", style="dim"
    )
    together: dict[tuple[str, str], list[str]] = {}
    for name, why in found.refused.items():
        format, _, type = name.partition(" ")
        together.setdefault((format, why.removeprefix(f"{format}-{type}: ")), []).append(type)
    for (format, why), types in together.items():
        console.print(f"{format} {', '.join(types)}: {why}", highlight=False, markup=False, soft_wrap=True)


def show_lock(console: Console, lock: Lock, path: Path) -> None:
    for pin in lock.pins:
        digests = ", ".join(f"{name} {digest[:12]}" for name, digest in pin.digests.items())
        console.print(f"{pin.uri}\n    {pin.pinned}: {digests}", highlight=False, markup=False)
    console.print(f"written to {path}: commit it beside the recipe", highlight=False, markup=False)


def show_checks(console: Console, found: Iterable[CheckResult]) -> None:
    for result in found:
        mark = {"pass": "ok  ", "fail": "FAIL"}.get(result.verdict, "    ")
        console.print(f"{mark}  {result.check}: {result.summary}", highlight=False, markup=False)


def show_outline(console: Console, outline: Outline) -> None:
    """What publishing would bring where, and what keeps it from that."""
    listing = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("destination", "file", "bytes", "how"):
        listing.add_column(heading, overflow="fold", justify="right" if heading == "bytes" else "left")
    for piece in outline.pieces:
        listing.add_row(escape(piece.destination), escape(piece.file), f"{piece.nbytes:,}", piece.how)
    console.print(listing, highlight=False)
    for obstacle in outline.obstacles:
        console.print(f"MISSING {obstacle}", style="red", highlight=False, markup=False)


def show_addresses(console: Console, addresses: Mapping[str, str]) -> None:
    for place, address in addresses.items():
        console.print(f"published to {place}: {address}", highlight=False, markup=False, soft_wrap=True)


def show_findings(console: Console, findings: Iterable[Finding]) -> None:
    for finding in findings:
        mark, style = ("ok  ", None) if finding.ok else ("FAIL", "red")
        console.print(f"{mark}  {finding.what}: {finding.fact}", style=style, highlight=False, markup=False)
        if not finding.ok:
            console.print(f"      {finding.remedy}", highlight=False, markup=False)


def show_leftovers(
    console: Console,
    builds: Sequence[tuple[Path, int]],
    downloads: Sequence[tuple[Path, int]],
    freed: Sequence[tuple[Path, int]],
) -> None:
    for what, spaces, how in (("build", builds, "--yes"), ("Hub cache", downloads, "--yes --hub")):
        for space in spaces:
            state = "freed" if space in freed else f"quantkit clean {how}"
            console.print(f"{size(space[1]):>10}  {what:<9}  {space[0]}  ({state})", highlight=False, markup=False)
    if not builds and not downloads:
        console.print("nothing to free", highlight=False)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_KINDS: dict[str, Callable[[float], str]] = {
    "bytes": lambda value: figures.size(int(value)),
    "memory": lambda value: figures.memory(int(value)),
    "number": lambda value: f"{value:.5g}",
    "share": lambda value: f"{100 * value:.2f} %",
    "rate": figures.rate,
    "times": lambda value: f"{value:.2f}×",
}
"""How a comparison writes its figures."""


def show_comparison(console: Console, found: Comparison) -> None:
    """Figures side by side, what of their differences is beyond noise, and types that changed."""
    for pair in found.pairs:
        title = pair.old if pair.old == pair.new else f"{pair.old} -> {pair.new}"
        console.print(f"\n[bold]{escape(title)}[/]" + (": the same bytes" if pair.same_bytes else ""), highlight=False)
        listing = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("figure", "old", "new", "difference", "verdict"):
            listing.add_column(heading, justify="left" if heading in ("figure", "verdict") else "right", overflow="fold")
        for each in pair.differences:
            write = _KINDS[each.kind]
            sign = "+" if each.change > 0 else "−" if each.change < 0 else ""
            listing.add_row(each.name, write(each.old), write(each.new), sign + write(abs(each.change)), escape(_said(each)))
        console.print(listing, highlight=False)
        for old, new, tensors in pair.retypings():
            said = f"{len(tensors)} tensors {old or 'absent'} -> {new or 'absent'}: {_folded(tensors)}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
    for side, names in (("old", found.only_old), ("new", found.only_new)):
        if names:
            console.print(f"only in {side}: {', '.join(names)}", highlight=False, markup=False)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def _said(each: Difference) -> str:
    noise = f" (±{_KINDS[each.kind](each.noise)}, {each.how})" if each.noise is not None else ""
    return each.verdict + noise + (f": {each.note}" if each.note else "")
