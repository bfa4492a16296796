"""Speed of an artefact against the unquantised model, in the same engine and the same run.

Absolute speeds differ by a quarter between machines of one kind, ratios taken side by side do not: only they gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import median

from quantkit.checks.verdict import Verdict, worst
from quantkit.values import CheckResult, Progress, Speed


def check(
    measure: Callable[[Path], Speed],
    artefact: Path,
    baseline: Path,
    *,
    rounds: int = 3,
    min_decode_ratio: float | None = None,
    min_prefill_ratio: float | None = None,
    progress: Progress | None = None,
) -> tuple[CheckResult, Speed, Speed]:
    """Result, the artefact's medians, the baseline's medians. `measure` is one child process of the engine.

    Every round measures both files, in turns first, and gives one ratio; a gate is on the median of the ratios, so
    that one disturbed round does not decide. Without a limit: a report. An encoder has no decode to speak of.
    """
    found: dict[Path, list[Speed]] = {artefact: [], baseline: []}
    for index in range(rounds):
        pair = (baseline, artefact) if index % 2 == 0 else (artefact, baseline)
        for step, path in enumerate(pair, start=1):
            found[path].append(measure(path))
            if progress is not None:
                progress("latency", 2 * index + step, 2 * rounds)
    speed, original = _median(found[artefact]), _median(found[baseline])
    limits = {"decode": min_decode_ratio, "prefill": min_prefill_ratio}
    gates: list[Verdict] = []
    values: dict[str, float] = {}
    said = []
    for part, limit in limits.items():
        rates = [[getattr(each, f"{part}_tokens_per_s") for each in found[path]] for path in (artefact, baseline)]
        if None in rates[0]:
            continue
        ratios = [mine / other for mine, other in zip(*rates, strict=True)]
        ratio = median(ratios)
        values |= {f"{part}_ratio": ratio, f"{part}_ratio_min": min(ratios), f"{part}_ratio_max": max(ratios)}
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds"
        rate = getattr(speed, f"{part}_tokens_per_s")
        said.append(f"{part} {rate:.1f} tokens/s, {ratio:.2f} times the original ({spread})")
        if limit is not None:
            below = sum(each < limit for each in ratios)
            values[f"{part}_rounds_below_limit"] = below
            said[-1] += f", limit {limit:g}, {below} of {rounds} rounds below it"
            gates.append("pass" if ratio >= limit else "fail")
    result = CheckResult(
        check="latency",
        verdict=worst(gates),
        summary=f"{'; '.join(said)}; {speed.threads} threads",
        values=values | {"rounds": rounds, "threads": speed.threads},
        limits={f"min_{part}_ratio": limit for part, limit in limits.items() if limit is not None},
        engine=speed.engine,
    )
    return result, speed, original


def _median(speeds: Sequence[Speed]) -> Speed:
    """Every time, rate and size by its own median; what was asked for is the same in all."""
    measured = [item.name for item in fields(Speed) if item.name.endswith(("_seconds", "_per_s"))]
    return replace(
        speeds[0],
        peak_rss_bytes=int(median(speed.peak_rss_bytes for speed in speeds)),
        **{name: median(getattr(speed, name) for speed in speeds) for name in measured if getattr(speeds[0], name) is not None},
    )
