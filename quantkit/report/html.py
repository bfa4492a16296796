"""report.html: one self-contained page, drawn from a manifest and nothing else."""

from __future__ import annotations

import re
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from quantkit import footprint
from quantkit.manifest import Manifest, TargetRecord
from quantkit.report import figures, plots

_DESKTOP = 50e9  # bytes/s: two channels of DDR4-3200, near enough
_BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.(.+)\.weight")


def render(manifest: Manifest) -> str:
    """The page as text: no script, no request, every value from outside escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "size": figures.size, "memory": figures.memory, "count": figures.count, "number": figures.number,
        "percent": figures.percent, "rate": figures.rate, "times": figures.times, "value": figures.any_value,
        "limits": figures.limits, "moment": figures.moment, "signed_percent": figures.signed_percent,
    }  # fmt: skip
    environment.tests["web"] = lambda text: isinstance(text, str) and text.startswith(("https://", "http://"))
    template = environment.from_string(resources.files("quantkit.report").joinpath("report.html.j2").read_text("utf-8"))
    measured = [record for target in manifest.targets for record in target.memory if record.measured is not None]
    return template.render(
        m=manifest,
        rows=[(target, figures.figures(target)) for target in manifest.targets],
        quality=figures.quality(manifest),
        marks=figures.MARKS,
        sentence=figures.verdict_sentence(manifest),
        licence=figures.licence_sentence(manifest.source),
        machines=footprint.MACHINES,
        reserve=f"{footprint.OS_RESERVE / footprint.GiB:g} GiB",
        fits={target.name: figures.fits(target) for target in manifest.targets},
        fallbacks={target.name: figures.fallbacks(target) for target in manifest.targets},
        types={target.name: figures.type_counts(target) for target in manifest.targets},
        worst_memory_error=max((abs(r.total / r.measured - 1) for r in measured if r.measured), default=None),
        answers=figures.answers(manifest),
        ceilings=_ceilings(manifest),
        drawings=_drawings(manifest),
        maps={target.name: _layer_map(target) for target in manifest.targets},
    )


def _ceilings(manifest: Manifest) -> list[tuple[float, list[tuple[str, float]]]]:
    """[(bandwidth, [(type, tokens/s)])]: a common desktop's, and this machine's where it was measured."""
    bandwidths = [_DESKTOP, *([manifest.machine.bandwidth] if manifest.machine.bandwidth else [])]
    return [
        (width, [(t.type, most) for t in manifest.targets if (most := figures.ceiling(t, width)) is not None])
        for width in bandwidths
    ]


def _drawings(manifest: Manifest) -> list[tuple[str, str, Markup]]:
    """(title, note, SVG) of every drawing that the manifest has figures for."""
    targets = manifest.targets
    drawings = []
    points = [
        (target.type, target.nbytes, f.kld, f.kld_error or 0.0, target.verdict == "pass")
        for target in targets
        if (f := figures.figures(target)).kld is not None
    ]
    if points:
        limits = {c.limits["max_mean"] for t in targets for c in t.checks if "max_mean" in c.limits}
        svg = plots.size_against_divergence(points, min(limits, default=None))
        drawings.append(("Size against divergence", "Lower left is better. Hollow: failed.", svg))
    lines = [
        (target.type, [(record.context, record.total, record.measured) for record in target.memory])
        for target in targets
        if target.memory
    ]
    if lines:
        usable = {size: size - footprint.OS_RESERVE / footprint.GiB for size in footprint.MACHINES}
        svg = plots.memory_against_context(lines, usable)
        drawings.append(("Memory by context", "Lines are predicted, signs measured. Dotted: room on a machine.", svg))
    for name, key in (("Prefill", "prefill"), ("Decode", "decode")):
        bars = _bars(targets, key)
        if bars:
            drawings.append((f"{name} speed", "Tokens per second; in brackets, against the unquantised model.",
                             plots.speed_bars(bars, "tokens per second")))  # fmt: skip
    return [(title, note, Markup(svg)) for title, note, svg in drawings]  # plots escapes


def _bars(targets: list[TargetRecord], key: str) -> list[tuple[str, float, float]]:
    """(label, tokens/s, ratio): the unquantised model, then every artefact that was timed."""
    timed = [
        target for target in targets if target.speed and target.baseline and getattr(target.baseline, f"{key}_tokens_per_s")
    ]
    if not timed:
        return []
    first = timed[0]
    baseline = getattr(first.baseline, f"{key}_tokens_per_s")
    bars = [(first.baseline_label or "unquantised", float(baseline), 1.0)]
    for target in timed:
        f = figures.figures(target)
        bars.append((target.type, getattr(f, key) or 0.0, getattr(f, f"{key}_ratio") or 0.0))
    return bars


def _layer_map(target: TargetRecord) -> Markup | None:
    errors = {
        (found[2], int(found[1])): tensor.relative_error
        for tensor in target.tensors
        if tensor.relative_error is not None and (found := _BLOCK_TENSOR.fullmatch(tensor.name))
    }
    return Markup(plots.layer_map(errors)) if errors else None
