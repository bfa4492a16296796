"""The report's drawings: pure functions from numbers to inline SVG.

Colours are classes and CSS variables of the page (s0, s1, ... for series), so that light and dark need no second
drawing. Every series has a sign or a dash pattern of its own too. Text is 12 units in drawings 360 units wide: a phone
shows it at its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 28, 40
GUTTER = 46  # on the right, for the names of lines
SERIES = 4  # colours that the page defines; series beyond them take turns


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to units of the drawing, linear or logarithmic, with the ticks that it shows."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    ticks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log2(low), math.log2(high), math.log2(max(value, self.low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def linear(greatest: float, start: float, end: float, steps: int = 4) -> Axis:
    """An axis from 0 to just past `greatest`, with about `steps` ticks at 1, 2 or 5 times a power of ten."""
    greatest = greatest if greatest > 0 and math.isfinite(greatest) else 1.0
    rough = greatest / steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    count = math.ceil(greatest * 1.04 / step)
    return Axis(0, count * step, start, end, ticks=tuple(step * n for n in range(count + 1)))


def size_against_divergence(points: Sequence[tuple[str, int, float, float, bool]], limit: float | None) -> str:
    """A point per artefact: (label, bytes, mean KLD, its standard error, passed); the limit as a dotted line."""
    unit, scale = ("GB", 1e9) if max(point[1] for point in points) >= 1e9 else ("MB", 1e6)
    x = linear(max(point[1] for point in points) / scale, LEFT, WIDTH - RIGHT)
    y = linear(max([point[2] + point[3] for point in points] + [limit or 0.0]), HEIGHT - BOTTOM, TOP)
    marks = [_frame(x, y, f"size, {unit}", "mean KLD, nats")]
    if limit is not None:
        marks.append(_rule(y.at(limit)) + _text(WIDTH - RIGHT, y.at(limit) - 4, f"limit {limit:g}", "end", "t"))
    spots = [(x.at(size / scale), y.at(kld)) for _, size, kld, _, _ in points]
    for n, (label, size, kld, error, passed) in enumerate(points):
        across, up = spots[n]
        span = f"M{across:.1f} {y.at(kld + error):.1f}V{y.at(max(0, kld - error)):.1f}"
        said = f"{label}: {size / scale:.2f} {unit}, mean KLD {kld:.4f} ± {error:.4f}"
        marks.append(
            f'<g><title>{escape(said)}</title><path class="w s{n % SERIES}" d="{span}"/>'
            f"{_sign(across, up, n, hollow=not passed)}{_label(label, n, spots)}</g>"
        )
    return _svg(marks, "Size of each artefact against its mean KL divergence from the original")


def memory_against_context(
    series: Sequence[tuple[str, Sequence[tuple[int, int, int | None]]]], machines: Mapping[int, float]
) -> str:
    """Predicted GiB by context, a line per artefact: (label, [(context, bytes, measured bytes or None)]).

    `machines` maps a machine's GB to the GiB that a model may take there: horizontal lines, up to the first that is
    never exceeded. The scale is logarithmic, so that a small model and its machine are both in sight.
    """
    rows = [row for _, line in series for row in line]
    sizes = [size / 2**30 for _, total, measured in rows for size in (total, measured) if size]
    enough = min((usable for usable in machines.values() if usable > max(sizes)), default=max(sizes))
    least, most = math.floor(math.log2(min(sizes))), math.ceil(math.log2(enough * 1.1))
    powers = tuple(2.0**power for power in range(least, most + 1))
    y = Axis(powers[0], powers[-1], HEIGHT - BOTTOM, TOP, True, powers)
    contexts = sorted({context for context, _, _ in rows})
    shown = contexts[:: max(1, -(-len(contexts) // 6))]
    x = Axis(contexts[0], contexts[-1], LEFT + 8, WIDTH - GUTTER - 8, True, tuple(map(float, shown)))
    marks = [_frame(x, y, "context, tokens", "memory, GiB", right=GUTTER, tokens=True)]
    lines = [(size, usable) for size, usable in machines.items() if y.low <= usable <= enough]
    marks += [
        _rule(y.at(usable), right=GUTTER) + _text(WIDTH - 2, y.at(usable) + 4, f"{size} GB", "end", "t")
        for size, usable in lines
    ]
    for n, (label, line) in enumerate(series):
        path = "L".join(f"{x.at(context):.1f} {y.at(total / 2**30):.1f}" for context, total, _ in line)
        marks.append(f'<path class="p s{n % SERIES} d{n % SERIES}" d="M{path}"><title>{escape(label)}</title></path>')
        marks += [
            f"<g><title>{escape(f'{label} at {context}: measured {measured / 2**30:.2f} GiB')}</title>"
            f"{_sign(x.at(context), y.at(measured / 2**30), n)}</g>"
            for context, _, measured in line
            if measured is not None
        ]
    return _svg(marks, "Predicted memory by context length; signs are measured")


def speed_bars(groups: Sequence[tuple[str, float, float]], unit: str) -> str:
    """A bar per model: (label, tokens/s, ratio to the first). The first is the unquantised one, drawn hollow."""
    row, left = 40, 1
    x = linear(max(rate for _, rate, _ in groups) * 1.3, left, WIDTH - RIGHT)
    marks = []
    for n, (label, rate, ratio) in enumerate(groups):
        top = 4 + n * row
        style, length = "h" if n == 0 else f"f s{(n - 1) % SERIES}", max(1, x.at(rate) - left)
        said = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
        marks.append(_text(left, top + 12, label, "start", "l"))
        marks.append(f'<rect class="{style}" x="{left}" y="{top + 17}" width="{length:.1f}" height="14" rx="2"/>')
        marks.append(_text(x.at(rate) + 6, top + 28, said if n == 0 else f"{said}  ({ratio:.2f}×)", "start", "n"))
    return _svg(marks, f"Speed, {unit}", height=8 + row * len(groups))


def layer_map(errors: Mapping[tuple[str, int], float]) -> str:
    """Relative error of every tensor, by kind (rows) and block (columns): the fuller the cell the larger the error."""
    kinds = sorted({kind for kind, _ in errors})
    blocks = max(block for _, block in errors) + 1
    left, row, foot = 84, 18, 32
    cell = (WIDTH - left - RIGHT) / blocks
    greatest = max(errors.values()) or 1.0
    marks = [_text(left - 6, 14 + n * row, kind, "end", "t") for n, kind in enumerate(kinds)]
    for (kind, block), error in errors.items():
        marks.append(
            f'<rect class="c" x="{left + block * cell:.2f}" y="{2 + kinds.index(kind) * row}" width="{cell * 0.9:.2f}" '
            f'height="{row - 2}" fill-opacity="{0.06 + 0.94 * error / greatest:.3f}">'
            f"<title>{escape(f'{kind}, block {block}: {error:.4f}')}</title></rect>"
        )
    height = len(kinds) * row + foot
    marks.append(_text(left, height - 18, "0", "start", "t"))
    marks.append(_text(WIDTH - RIGHT, height - 18, str(blocks - 1), "end", "t"))
    marks.append(_text((left + WIDTH - RIGHT) / 2, height - 18, "block", "middle", "t"))
    marks.append(_text(WIDTH - RIGHT, height - 3, f"pale: 0, full: {greatest:.3f}", "end", "t"))
    return _svg(marks, "Relative error of each tensor by kind and block", height=height)


def _frame(x: Axis, y: Axis, across: str, up: str, *, right: int = RIGHT, tokens: bool = False) -> str:
    grid = "".join(f'<path class="g" d="M{LEFT} {y.at(tick):.1f}H{WIDTH - right}"/>' for tick in y.ticks)
    rows = "".join(_text(LEFT - 6, y.at(tick) + 4, f"{tick:g}", "end", "t") for tick in y.ticks)
    said = [_tokens(tick) if tokens else f"{tick:g}" for tick in x.ticks]
    columns = "".join(
        _text(x.at(tick), HEIGHT - BOTTOM + 16, text, "middle", "t") for tick, text in zip(x.ticks, said, strict=True)
    )
    title = _text((LEFT + WIDTH - right) / 2, HEIGHT - 6, across, "middle", "t")
    return f"{grid}{rows}{columns}{title}{_text(2, 10, up, 'start', 't')}"


def _tokens(count: float) -> str:
    return f"{count / 1024:g}k" if count >= 1024 and count % 1024 == 0 else f"{count:g}"


def _rule(height: float, *, right: int = RIGHT) -> str:
    return f'<path class="r" d="M{LEFT} {height:.1f}H{WIDTH - right}"/>'


def _label(text: str, n: int, spots: Sequence[tuple[float, float]]) -> str:
    """The n-th spot's label: right of it, left of it or above it, where neither a spot nor the edge is near."""
    x, y = spots[n]
    need = 7.5 * len(text) + 18
    beside = [other - x for k, (other, up) in enumerate(spots) if k != n and abs(up - y) < 16]
    if x + need < WIDTH and not any(0 <= gap < need for gap in beside):
        return _text(x + 9, y + 4, text, "start", "l")
    if x - need > LEFT and not any(-need < gap <= 0 for gap in beside):
        return _text(x - 9, y + 4, text, "end", "l")
    return _text(min(max(x, need / 2), WIDTH - need / 2), y - 10, text, "middle", "l")


def _sign(x: float, y: float, n: int, *, hollow: bool = False) -> str:
    """The n-th series' sign: disc, square, diamond, triangle; hollow for what failed."""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"',
        f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"',
        f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"',
        f'<path d="M{x:.1f} {y - 6:.1f}l6 10h-12z"',
    )
    return f'{shapes[n % SERIES]} class="{"o" if hollow else "f"} s{n % SERIES}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(marks: Sequence[str], title: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(marks)}</svg>'
