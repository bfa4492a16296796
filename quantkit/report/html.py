"""report.html: one self-contained page, drawn from a manifest and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from quantkit import footprint
from quantkit.manifest import Manifest, PeerRecord, TargetRecord
from quantkit.report import figures, layers, peers, plots


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
    return template.render(
        m=manifest,
        rows=[(target, figures.figures(target)) for target in manifest.targets],
        quality=(*figures.quality(manifest), *figures.second_opinion(manifest)),
        marks=figures.MARKS,
        sentence=figures.verdict_sentence(manifest),
        licence=figures.licence_sentence(manifest.source),
        machines=footprint.MACHINES,
        reserve=f"{footprint.OS_RESERVE / footprint.GiB:g} GiB",
        fits={target.name: figures.fits(target) for target in manifest.targets},
        fallbacks={target.name: figures.fallbacks(target) for target in manifest.targets},
        types={target.name: figures.type_counts(target) for target in manifest.targets},
        worst_memory_error=figures.worst_memory_error(manifest),
        memory={target.name: figures.memory_points(target) for target in manifest.targets},
        published=[(peer, peer.size(manifest.source.parameters)) for peer in peers.LLAMA_CPP],
        published_source=peers.SOURCE,
        curves=[(Markup(key), name) for key, name in plots.legend(_points(manifest))],
        beside=peers.beside(manifest),
        key=lambda n, line: Markup(plots.key(n, line=line)),
        answers=figures.answers(manifest),
        ceilings=figures.ceilings(manifest),
        reach=figures.reach(manifest),
        drawings=_drawings(manifest),
        maps={target.name: _layer_map(target) for target in manifest.targets},
    )


def _drawings(manifest: Manifest) -> list[tuple[str, str, Markup]]:
    """(title, note, SVG) of every drawing that the manifest has figures for; an artefact has one colour in all of them, but for
    `_points`."""
    targets = list(enumerate(manifest.targets))
    drawings = []
    points = _points(manifest)
    if points:
        limits = {c.limits["max_mean"] for _, t in targets for c in t.checks if "max_mean" in c.limits}
        others = [(peer.type, peer.size(manifest.source.parameters), peer.kld) for peer in peers.LLAMA_CPP]
        note = "Lower left is better. Hollow: not passed. "
        if manifest.peers:
            others = []  # what was measured here says more
            note += f"Upright crosses: {_makers(manifest)}'s own files of the same types and importance, measured in this run."
        else:
            note += f"Grey crosses, for orientation: {peers.SHORT}, at this model's size."
        svg = plots.size_against_divergence(points, min(limits, default=None), others)
        drawings.append(("Size against divergence", note, svg))
    lines = _lines(manifest)
    if lines:
        usable = {size: size - footprint.OS_RESERVE / footprint.GiB for size in footprint.MACHINES}
        svg = plots.memory_against_context(lines, usable)
        drawings.append(("Memory by context", "Lines are predicted, signs measured. Dotted: room on a machine.", svg))
    for name, key in (("Prefill", "prefill"), ("Decode", "decode")):
        bars = _bars(manifest.targets, key)
        if bars:
            note = "Tokens per second; in brackets, against the unquantised model (hollow) in the same run."
            drawings.append((f"{name} speed", note, plots.speed_bars(bars, "tokens per second")))
    return [(title, note, Markup(svg)) for title, note, svg in drawings]  # plots escapes


def _points(manifest: Manifest) -> list[plots.Point]:
    """Of every artefact whose divergence was measured, and of every peer's file. Where codes were chosen in several ways,
    colours and signs are those of the curves."""
    names = list(dict.fromkeys(curve for target in manifest.targets if (curve := peers.curve(target))))
    records: list[tuple[int | None, TargetRecord | PeerRecord]] = []
    for n, target in enumerate(manifest.targets):
        curve = peers.curve(target)
        records.append((n if len(names) < 2 else names.index(curve) if curve else len(names) + n, target))
    return [
        plots.Point(
            record.title,
            series,
            record.nbytes,
            found.kld,
            found.kld_error or 0.0,
            isinstance(record, PeerRecord) or record.verdict == "pass",
            record.type,
            peers.curve(record),
        )
        for series, record in [*records, *((None, peer) for peer in manifest.peers)]
        if (found := figures.figures(record)).kld is not None
    ]


def _makers(manifest: Manifest) -> str:
    return ", ".join(dict.fromkeys(peer.maker for peer in manifest.peers))


def _lines(manifest: Manifest) -> list[plots.Line]:
    return [
        plots.Line(target.title, n, [(point.context, point.predicted, point.measured) for point in points])
        for n, target in enumerate(manifest.targets)
        if (points := figures.memory_points(target))
    ]


def _bars(targets: Sequence[TargetRecord], key: str) -> list[plots.Bar]:
    """Every unquantised model that was timed, each before the artefacts that were timed beside it."""
    groups: dict[tuple[str, str], list[plots.Bar]] = {}
    for n, target in enumerate(targets):
        base = getattr(target.baseline, f"{key}_tokens_per_s") if target.baseline else None
        f = figures.figures(target)
        rate, ratio = getattr(f, key), getattr(f, f"{key}_ratio")
        if target.baseline is None or base is None or rate is None:
            continue
        label = target.baseline_label or "unquantised"
        bars = groups.setdefault((label, target.baseline.engine), [plots.Bar(label, None, base)])
        bars.append(plots.Bar(target.title, n, rate, ratio, *figures.spread(target, key)))
    return [bar for bars in groups.values() for bar in bars]


def _layer_map(target: TargetRecord) -> tuple[Markup, list[layers.Role]] | None:
    """The drawing and the same in words, role by role."""
    errors = layers.errors(target)
    return (Markup(plots.layer_map(errors)), layers.roles(errors)) if errors else None
