"""Two artefacts beside each other: which of their differences are beyond noise.

Both were measured against their originals. Where that was on the same text in as many chunks, differences are taken chunk by
chunk: what makes a chunk hard is the same for both and cancels, and the error of the difference is far below either's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantkit.checks.verdict import Estimate, estimate
from quantkit.errors import InputError
from quantkit.manifest import CheckRecord, Manifest, TargetRecord
from quantkit.report import figures

Verdict = Literal["better", "worse", "no difference beyond noise", "same", "not comparable"]
Kind = Literal["bytes", "memory", "number", "share", "rate", "times"]

How = Literal["exact", "paired", "independent", "rounds"]

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a check. series: its chunk means, and one to take from them first; ratio: exp of their mean is meant."""

    name: str
    check: str
    key: str
    series: str
    less: str | None
    kind: Kind
    lower_is_better: bool
    ratio: bool = False


MEASURES = (
    Measure("perplexity ratio", "perplexity", "ratio", "nll", "nll_reference", "number", True, ratio=True),
    Measure("mean KLD", "divergence", "mean_kld", "kld", None, "number", True),
    Measure("same top-1", "divergence", "same_top", "same_top", None, "share", False),
    Measure("mean KLD, second text", "divergence-second", "mean_kld", "kld", None, "number", True),
    Measure("cloze accuracy", "cloze", "accuracy", "right", None, "share", False),
    Measure("cosine", "embedding", "cosine", "cosine", None, "number", False),
    Measure("rank correlation", "embedding", "rank", "rank", None, "number", False),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of both, new less old, and what lies within noise: ± `noise` at 95 % confidence, or the rounds' spread."""

    name: str
    kind: Kind
    old: float
    new: float
    verdict: Verdict
    noise: float | None = None
    how: How = "exact"
    note: str = ""

    @property
    def change(self) -> float:
        return self.new - self.old


@dataclass(frozen=True, slots=True)
class Pair:
    """One artefact of each side. retyped: (tensor, its old type, its new one); tensors of one side alone have no other."""

    old: str
    new: str
    same_bytes: bool
    differences: tuple[Difference, ...]
    retyped: tuple[tuple[str, str | None, str | None], ...]

    def retypings(self) -> list[tuple[str | None, str | None, list[str]]]:
        """(old type, new type, tensors), the most frequent first."""
        groups: dict[tuple[str | None, str | None], list[str]] = {}
        for name, old, new in self.retyped:
            groups.setdefault((old, new), []).append(name)
        return sorted(((*types, names) for types, names in groups.items()), key=lambda group: -len(group[2]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Artefacts that both sides have, those of one alone, and what to keep in mind."""

    pairs: tuple[Pair, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        for pair, said in zip(self.pairs, found["pairs"], strict=True):
            for difference, row in zip(pair.differences, said["differences"], strict=True):
                row["change"] = difference.change
        return found


def compare(old: Path, new: Path) -> Comparison:
    """Two folders with a manifest.json, two such manifests, or two artefacts that lie beside theirs. Raises InputError."""
    (before, chosen), (after, wanted) = _read(old), _read(new)
    matched = _matched(chosen, wanted)
    if not matched:
        names = " and ".join(", ".join(target.name for target in side) or "none" for side in (chosen, wanted))
        raise InputError(f"{old} and {new} have no artefact in common: {names}; name one of each by its file")
    paired = list(before.text.values()) == list(after.text.values())
    both = {target.name for target, _ in matched}, {target.name for _, target in matched}
    return Comparison(
        tuple(_pair(one, other, paired) for one, other in matched),
        tuple(target.name for target in chosen if target.name not in both[0]),
        tuple(target.name for target in wanted if target.name not in both[1]),
        tuple(_notes(before, after, paired)),
    )


def _read(path: Path) -> tuple[Manifest, list[TargetRecord]]:
    """The manifest of a path, and those of its artefacts that are meant."""
    place = path if path.name == MANIFEST else path / MANIFEST
    if place.is_file():
        manifest = _load(place)
        return manifest, manifest.targets
    for folder in path.parents:
        if path.exists() and (folder / MANIFEST).is_file():
            manifest = _load(folder / MANIFEST)
            name = path.relative_to(folder).as_posix()
            meant = [t for t in manifest.targets if any(f.name == name or f.name.startswith(f"{name}/") for f in t.files)]
            if meant:
                return manifest, meant
    raise InputError(f"{path}: neither a folder with a {MANIFEST} nor an artefact beside one; give what a run made")


def _load(path: Path) -> Manifest:
    try:
        return Manifest.read(path)
    except ValueError as error:
        raise InputError(f"{path}: no manifest that this version of quantkit reads: {error}") from error


def _matched(old: Sequence[TargetRecord], new: Sequence[TargetRecord]) -> list[tuple[TargetRecord, TargetRecord]]:
    """By name; where each side is one artefact, those two."""
    if len(old) == len(new) == 1:
        return [(old[0], new[0])]
    named = {target.name: target for target in new}
    return [(target, named[target.name]) for target in old if target.name in named]


def _notes(old: Manifest, new: Manifest, paired: bool) -> Iterator[str]:
    if not paired:
        yield "the evaluation texts differ: errors are taken as independent, and a difference may be the texts'"
    if old.source.digests != new.source.digests:
        yield "the sources differ: each artefact was measured against its own"
    if (old.machine.cpu, old.machine.cores) != (new.machine.cpu, new.machine.cores):
        yield f"speeds were measured on {old.machine.cpu} and on {new.machine.cpu}: only their ratios are judged"


def _pair(old: TargetRecord, new: TargetRecord, paired: bool) -> Pair:
    """Every figure that both have."""
    differences = [
        _exact("size", "bytes", old.nbytes, new.nbytes),
        _exact("bits per weight", "number", old.bits_per_weight, new.bits_per_weight),
        *(found for measure in MEASURES if (found := _measured(measure, old, new, paired))),
        *(found for part in ("prefill", "decode") for found in _speeds(part, old, new)),
    ]
    if old.speed and new.speed:
        peaks = old.speed.peak_rss_bytes, new.speed.peak_rss_bytes
        differences.append(Difference("peak memory", "memory", *peaks, "not comparable", note="its spread is not known"))
    same = [file.sha256 for file in old.files] == [file.sha256 for file in new.files]
    return Pair(old.name, new.name, same, tuple(differences), tuple(_retyped(old, new)))


def _exact(name: str, kind: Kind, old: float, new: float) -> Difference:
    return Difference(name, kind, old, new, _judged(new - old, 0.0, lower_is_better=True))


def _measured(measure: Measure, old: TargetRecord, new: TargetRecord, paired: bool) -> Difference | None:
    """A measure of quality, paired by chunk where that can be done; None where one of both has it not."""
    one, other = _check(old, measure.check), _check(new, measure.check)
    values = [_number(check, measure.key) for check in (one, other)]
    if one is None or other is None or values[0] is None or values[1] is None:
        return None
    before, after = _series(one, measure), _series(other, measure)
    if paired and len(before) == len(after) > 1:
        how: How = "paired"
        between = estimate(np.subtract(after, before)[:, None])
        scale = (values[0] + values[1]) / 2 if measure.ratio else 1.0  # chunks give a ratio's logarithm
        noise = scale * between.either_side
    else:
        errors = [_number(check, f"{measure.key}_error") for check in (one, other)]
        chunks = [_number(check, "chunks") for check in (one, other)]
        if None in errors or None in chunks:
            return Difference(measure.name, measure.kind, values[0], values[1], "not comparable", note="an error is not known")
        how = "independent"
        together = math.hypot(*(error or 0.0 for error in errors))
        noise = Estimate(0.0, together, int(min(count or 0 for count in chunks))).either_side
    verdict = _judged(values[1] - values[0], noise, lower_is_better=measure.lower_is_better)
    return Difference(measure.name, measure.kind, values[0], values[1], verdict, noise, how)


def _speeds(part: str, old: TargetRecord, new: TargetRecord) -> Iterator[Difference]:
    """Tokens/s as they are, and their ratios to the unquantised model, which alone can be judged: runs differ, rounds of one
    run do not. A ratio is better where even its worst round is above the other's best.
    """
    before, after = (getattr(target.speed, f"{part}_tokens_per_s") if target.speed else None for target in (old, new))
    if before is None or after is None:
        return
    yield Difference(f"{part}, tokens/s", "rate", before, after, "not comparable", note="of another run")
    one, other = (getattr(figures.figures(target), f"{part}_ratio") for target in (old, new))
    if one is None or other is None:
        return
    name = f"{part} over the unquantised"
    (least, most), (low, high) = figures.spread(old, part), figures.spread(new, part)
    if old.baseline_label != new.baseline_label:
        note = f"against {old.baseline_label} and {new.baseline_label}"
        yield Difference(name, "times", one, other, "not comparable", note=note)
    elif least is None or most is None or low is None or high is None or least == most or low == high:
        yield Difference(name, "times", one, other, "not comparable", note="the spread over rounds is not known")
    else:
        verdict: Verdict = "better" if low > most else "worse" if high < least else "no difference beyond noise"
        note = f"rounds {least:.2f} to {most:.2f}, {low:.2f} to {high:.2f}"
        yield Difference(name, "times", one, other, verdict, (most - least + high - low) / 2, "rounds", note)


def _retyped(old: TargetRecord, new: TargetRecord) -> Iterator[tuple[str, str | None, str | None]]:
    before, after = ({tensor.name: tensor.type for tensor in target.tensors} for target in (old, new))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _judged(change: float, noise: float, *, lower_is_better: bool) -> Verdict:
    if change == 0:
        return "same"
    if abs(change) <= noise:
        return "no difference beyond noise"
    return "better" if (change < 0) == lower_is_better else "worse"


def _series(check: CheckRecord, measure: Measure) -> list[float]:
    """A measure's chunk means; empty where they were not kept."""
    means = check.chunk_means.get(measure.series, [])
    if measure.less is None:
        return means
    return [value - other for value, other in zip(means, check.chunk_means.get(measure.less, []), strict=False)]


def _check(target: TargetRecord, name: str) -> CheckRecord | None:
    return next((check for check in target.checks if check.check == name), None)


def _number(check: CheckRecord | None, key: str) -> float | None:
    value = check.values.get(key) if check else None
    return None if value is None or isinstance(value, str) else float(value)
