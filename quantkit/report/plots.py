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


def between(least: float, greatest: float, start: float, end: float, steps: int = 5) -> Axis:
    """A linear axis from just below `least` to just above `greatest`, from 0 where that is near; about `steps` ticks."""
    room = 0.06 * (greatest - least) or 0.1 * greatest or 1.0
    low, high = max(0.0, least - room), greatest + room
    low = 0.0 if low < 0.15 * high else low
    rough = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    ticks = (step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))
    return Axis(low, high, start, end, ticks=tuple(ticks))


def decades(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis that holds the positive ones of `values`, from 1, 2 or 5 times a power of ten to another."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    marks = [m * 10.0**power for power in range(-9, 10) for m in (1, 2, 5)]
    low = max((mark for mark in marks if mark < min(positive)), default=marks[0])
    high = min((mark for mark in marks if mark > max(positive)), default=marks[-1])
    ticks = [mark for mark in marks if low <= mark <= high]
    whole = [tick for tick in ticks if math.isclose(math.log10(tick), round(math.log10(tick)), abs_tol=1e-9)]
    return Axis(low, high, start, end, True, tuple(whole if len(whole) > 2 else ticks))


@dataclass(frozen=True, slots=True)
class Point:
    """An artefact's size, bytes, and mean KL divergence with its standard error; `series` is its colour and sign, None of a
    peer's file, which has a plain cross. type: what is written beside it, once for those that lie together."""

    label: str
    series: int | None
    nbytes: float
    kld: float
    error: float
    passed: bool
    type: str
    curve: str = ""  # the one that it lies on


CURVES = 4  # dash patterns that the page defines


@dataclass(frozen=True, slots=True)
class Line:
    """An artefact's bytes by context: (context, predicted, measured or None)."""

    label: str
    series: int
    points: Sequence[tuple[int, int, int | None]]


@dataclass(frozen=True, slots=True)
class Bar:
    """Tokens/s of an artefact with its ratio to the unquantised model's, median, least and greatest; of that model itself
    without series and ratio."""

    label: str
    series: int | None
    rate: float
    ratio: float | None = None
    least: float | None = None
    greatest: float | None = None


def size_against_divergence(
    points: Sequence[Point], limit: float | None, published: Sequence[tuple[str, float, float]] = ()
) -> str:
    """A point per artefact, those of one curve joined, the limit as a dotted line, and for orientation others' points: (label,
    bytes, mean KLD).

    Divergence is on a logarithmic scale: types differ by factors.
    """
    sizes = [point.nbytes for point in points] + [nbytes for _, nbytes, _ in published]
    unit, scale = ("GB", 1e9) if max(sizes) >= 1e9 else ("MB", 1e6)
    x = between(min(sizes) / scale, max(sizes) / scale, LEFT, WIDTH - RIGHT)
    values = [edge for point in points for edge in (point.kld, point.kld + point.error)] + [kld for _, _, kld in published]
    y = decades([*values, *([limit] if limit else [])], HEIGHT - BOTTOM, TOP)
    marks = [_frame(x, y, f"size, {unit}", "mean KLD, nats (logarithmic)")]
    if limit is not None:
        marks.append(_rule(y.at(limit)) + _text(WIDTH - RIGHT, y.at(limit) - 4, f"limit {limit:g}", "end", "t"))
    around = [(x.at(nbytes / scale), y.at(kld)) for _, nbytes, kld in published]
    if around:
        marks.append(f'<path class="q" d="M{"L".join(f"{across:.1f} {up:.1f}" for across, up in around)}"/>')
    for (label, nbytes, kld), (across, up) in zip(published, around, strict=True):
        said = f"{label}, published: {nbytes / scale:.2f} {unit}, mean KLD {kld:.4f}"
        cross = f'<path class="k" d="M{across - 3:.1f} {up - 3:.1f}l6 6m0 -6l-6 6"/>'
        marks.append(f"<g><title>{escape(said)}</title>{cross}{_text(across - 6, up + 12, label, 'end', 'k')}</g>")
    for n, (name, along) in enumerate(_curves(points).items()):
        path = "L".join(f"{x.at(point.nbytes / scale):.1f} {y.at(point.kld):.1f}" for point in along)
        if len(along) > 1:
            marks.append(f'<path class="e d{n % CURVES}" d="M{path}"><title>{escape(name)}</title></path>')
    spots = [(x.at(point.nbytes / scale), y.at(point.kld)) for point in points]
    for point, (across, up) in zip(points, spots, strict=True):
        span = f"M{across:.1f} {y.at(point.kld + point.error):.1f}V{y.at(point.kld - point.error):.1f}"
        said = f"{point.label}: {point.nbytes / scale:.2f} {unit}, mean KLD {point.kld:.4f} ± {point.error:.4f}"
        colour = "i" if point.series is None else f"s{point.series % SERIES}"
        marks.append(
            f'<g><title>{escape(said)}</title><path class="w {colour}" d="{span}"/>'
            f"{_sign(across, up, point.series, hollow=not point.passed)}</g>"
        )
    marks += _labels([(point.type, *spot) for point, spot in zip(points, spots, strict=True)], around)
    return _svg(marks, "Size of each artefact against its mean KL divergence from the original")


def legend(points: Sequence[Point]) -> list[tuple[str, str]]:
    """(key, name) of every curve: its line, and the sign that all of its points have; nothing where one point is all."""
    found, entries = _curves(points), []
    for n, (name, along) in enumerate(found.items()):
        line = f'<path class="e d{n % CURVES}" d="M1 7H35"/>' if len(along) > 1 else ""
        sign = _sign(18, 7, along[0].series) if len({point.series for point in along}) == 1 else ""
        entries.append((f'<svg viewBox="0 0 36 14" aria-hidden="true">{line}{sign}</svg>', name))
    return entries if len(found) > 1 or any(len(along) > 1 for along in found.values()) else []


def _curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each curve by size, curves in the order of their first points."""
    names = dict.fromkeys(point.curve for point in points if point.curve)
    return {name: sorted((p for p in points if p.curve == name), key=lambda p: (p.nbytes, -p.kld)) for name in names}


def memory_against_context(series: Sequence[Line], machines: Mapping[int, float]) -> str:
    """GiB by context, a line per artefact as it is predicted, signs where it was measured.

    `machines` maps a machine's GB to the GiB that a model may take there: horizontal lines, up to the first that is
    never exceeded. The scale is logarithmic, so that a small model and its machine are both in sight.
    """
    rows = [row for line in series for row in line.points]
    sizes = [size / 2**30 for _, total, measured in rows for size in (total, measured) if size]
    enough = min((usable for usable in machines.values() if usable > max(sizes)), default=max(sizes))
    least, most = math.floor(math.log2(min(sizes))), math.ceil(math.log2(enough * 1.1))
    powers = tuple(2.0**power for power in range(least, most + 1))
    y = Axis(powers[0], powers[-1], HEIGHT - BOTTOM, TOP, True, powers)
    contexts = sorted({context for context, _, _ in rows})
    shown = [context for context in contexts if context & (context - 1) == 0] or contexts
    shown = shown[:: max(1, -(-len(shown) // 6))]
    x = Axis(contexts[0], contexts[-1], LEFT + 8, WIDTH - GUTTER - 8, True, tuple(map(float, shown)))
    marks = [_frame(x, y, "context, tokens", "memory, GiB", right=GUTTER, tokens=True)]
    lines = [(size, usable) for size, usable in machines.items() if y.low <= usable <= enough]
    marks += [
        _rule(y.at(usable), right=GUTTER) + _text(WIDTH - 2, y.at(usable) + 4, f"{size} GB", "end", "t")
        for size, usable in lines
    ]
    for line in series:
        n = line.series % SERIES
        path = "L".join(f"{x.at(context):.1f} {y.at(total / 2**30):.1f}" for context, total, _ in line.points)
        marks.append(f'<path class="p s{n} d{n}" d="M{path}"><title>{escape(line.label)}</title></path>')
        marks += [
            f"<g><title>{escape(_measured(line.label, context, total, measured))}</title>"
            f"{_sign(x.at(context), y.at(measured / 2**30), line.series)}</g>"
            for context, total, measured in line.points
            if measured is not None
        ]
    return _svg(marks, "Memory by context length: lines are predicted, signs measured")


def _measured(label: str, context: int, predicted: int, measured: int) -> str:
    error = predicted / measured - 1
    return f"{label} at {context}: measured {measured / 2**30:.2f} GiB, predicted {predicted / 2**30:.2f} ({error:+.1%})"


def speed_bars(bars: Sequence[Bar], unit: str) -> str:
    """A bar per model; an unquantised one is drawn hollow, with what is compared with it below. The thin line is the spread of
    the rounds."""
    row, left = 40, 1
    reach = max(bar.rate * max(1.0, (bar.greatest or 0.0) / (bar.ratio or 1.0)) for bar in bars)
    x = Axis(0, reach, left, WIDTH - 92)  # figures go beside the longest
    marks = []
    for n, bar in enumerate(bars):
        top, end = 4 + n * row, x.at(bar.rate)
        style, length = "h" if bar.series is None else f"f s{bar.series % SERIES}", max(1, end - left)
        said = f"{bar.rate:,.0f}" if bar.rate >= 100 else f"{bar.rate:.1f}"
        marks.append(_text(left, top + 12, bar.label, "start", "l"))
        marks.append(f'<rect class="{style}" x="{left}" y="{top + 17}" width="{length:.1f}" height="14" rx="2"/>')
        if bar.ratio and bar.least and bar.greatest:
            low, high = (x.at(bar.rate / bar.ratio * each) for each in (bar.least, bar.greatest))
            title = f"{bar.label}: {bar.least:.2f} to {bar.greatest:.2f} times in the rounds"
            marks.append(
                f'<g><title>{escape(title)}</title><path class="u" d="M{low:.1f} {top + 24}H{high:.1f}'
                f'M{low:.1f} {top + 21}v6M{high:.1f} {top + 21}v6"/></g>'
            )
            end = max(end, high)
        marks.append(_text(end + 6, top + 28, said if bar.ratio is None else f"{said}  ({bar.ratio:.2f}×)", "start", "n"))
    return _svg(marks, f"Speed, {unit}", height=8 + row * len(bars))


def layer_map(errors: Mapping[tuple[str, int], float]) -> str:
    """Relative error of every tensor, by role (rows) and block (columns): the fuller the cell the larger the error."""
    roles = list(dict.fromkeys(role for role, _ in errors))
    blocks = max(block for _, block in errors) + 1
    left, row, foot = min(168.0, 12 + 6.4 * max(map(len, roles))), 18, 46
    cell = (WIDTH - left - RIGHT) / blocks
    greatest = max(errors.values()) or 1.0
    marks = [
        f"<g><title>{escape(role)}</title>{_text(left - 6, 14 + n * row, _shortened(role, left), 'end', 't')}</g>"
        for n, role in enumerate(roles)
    ]
    for (role, block), error in errors.items():
        marks.append(
            f'<rect class="c" x="{left + block * cell:.2f}" y="{2 + roles.index(role) * row}" width="{cell * 0.9:.2f}" '
            f'height="{row - 2}" fill-opacity="{0.06 + 0.94 * error / greatest:.3f}">'
            f"<title>{escape(f'{role}, block {block}: {error:.4f}')}</title></rect>"
        )
    bottom = len(roles) * row + 16
    marks.append(_text(left, bottom, "0", "start", "t"))
    marks.append(_text(WIDTH - RIGHT, bottom, str(blocks - 1), "end", "t"))
    marks.append(_text((left + WIDTH - RIGHT) / 2, bottom, "block", "middle", "t"))
    marks += [
        f'<rect class="c" x="{left + 28 + n * 12:.1f}" y="{bottom + 10}" width="12" height="10" fill-opacity="{share:.2f}"/>'
        for n, share in enumerate((0.06, 0.295, 0.53, 0.765, 1.0))
    ]
    marks.append(
        _text(left + 22, bottom + 19, "0", "end", "t") + _text(left + 94, bottom + 19, f"{greatest:.3f}", "start", "t")
    )
    return _svg(marks, "Relative error of each tensor by role and block", height=len(roles) * row + foot)


def _shortened(text: str, room: float) -> str:
    """A role's name from its end, where all of it does not fit."""
    most = int((room - 12) / 6.4)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def key(series: int, *, line: bool) -> str:
    """What a legend shows of a series: its sign, on its line where it has one."""
    n = series % SERIES
    path = f'<path class="p s{n} d{n}" d="M1 7H35"/>' if line else ""
    return f'<svg viewBox="0 0 36 14" aria-hidden="true">{path}{_sign(18, 7, series)}</svg>'


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


def _labels(points: Sequence[tuple[str, float, float]], others: Sequence[tuple[float, float]]) -> list[str]:
    """A label for every point (text, x, y), one for those of a text that lie together, where it hides neither a point, nor one
    of `others`, nor a label that is there: beside the uppermost, beside the lowest, below, else above."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in (*((x, y) for _, x, y in points), *others)]
    groups: list[list[tuple[str, float, float]]] = []
    for text, x, y in sorted(points, key=lambda point: point[2]):
        near = [group for group in groups if group[0][0] == text and abs(group[0][1] - x) < 24 and abs(group[-1][2] - y) < 48]
        if near:
            near[0].append((text, x, y))
        else:
            groups.append([(text, x, y)])
    marks = []
    for group in groups:
        (text, x, y), (_, under, low) = group[0], group[-1]
        wide = 7.5 * len(text)
        beside = [(at + gap, up + 4, side) for at, up in ((x, y), (under, low)) for gap, side in ((9, "start"), (-9, "end"))]
        above = (min(max(x, LEFT + wide / 2), WIDTH - wide / 2), y - 10, "middle")
        for at, up, side in (*beside, (under, low + 19, "middle"), above):
            left = at - {"start": 0, "middle": wide / 2, "end": wide}[side]
            box = (left, up - 10, left + wide, up + 2)
            within = left >= LEFT and box[2] <= WIDTH and up < HEIGHT - BOTTOM
            if within and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        marks.append(_text(at, up, text, side, "l"))
    return marks


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Of boxes (left, top, right, bottom)."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _sign(x: float, y: float, n: int | None, *, hollow: bool = False) -> str:
    """The n-th series' sign: disc, square, diamond, triangle; hollow for what failed; an upright cross for none."""
    if n is None:
        return f'<path class="i" d="M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10"/>'
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
