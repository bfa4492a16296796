"""Speed of an artefact against the unquantised model, in the same engine and the same run.

Absolute speeds differ by a quarter between machines of one kind, ratios taken side by side do not: only they gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import median

from quantkit.values import CheckResult, Progress, Speed


def check(
    measure: Callable[[Path], Speed],
    artefact: Path,
    baseline: Path,
    *,
    rounds: int = 3,
    min_decode_ratio: float | None = None,
    progress: Progress | None = None,
) -> tuple[CheckResult, Speed, Speed]:
    """Result, the artefact's medians, the baseline's medians. `measure` is one child process of the engine.

    Every round measures both files, in turns first, and gives one ratio; the gate is on the median of the ratios, so
    that one disturbed round does not decide. Without a limit: a report.
    """
    found: dict[Path, list[Speed]] = {artefact: [], baseline: []}
    for index in range(rounds):
        pair = (baseline, artefact) if index % 2 == 0 else (artefact, baseline)
        for step, path in enumerate(pair, start=1):
            found[path].append(measure(path))
            if progress is not None:
                progress("latency", 2 * index + step, 2 * rounds)
    mine, other = found[artefact], found[baseline]
    decode = [a.decode_tokens_per_s / b.decode_tokens_per_s for a, b in zip(mine, other, strict=True)]
    prefill = [a.prefill_tokens_per_s / b.prefill_tokens_per_s for a, b in zip(mine, other, strict=True)]
    speed, original, ratio = _median(mine), _median(other), median(decode)
    below = sum(each < min_decode_ratio for each in decode) if min_decode_ratio is not None else 0
    summary = (
        f"decode {speed.decode_tokens_per_s:.1f} tokens/s, {ratio:.2f} times the original "
        f"({min(decode):.2f} to {max(decode):.2f} in {rounds} rounds); prefill {speed.prefill_tokens_per_s:.1f} "
        f"tokens/s, {median(prefill):.2f} times; {speed.threads} threads"
    )
    limit = "" if min_decode_ratio is None else f"; limit {min_decode_ratio:g}, {below} of {rounds} rounds below it"
    result = CheckResult(
        check="latency",
        verdict="report" if min_decode_ratio is None else "pass" if ratio >= min_decode_ratio else "fail",
        summary=summary + limit,
        values={
            "decode_ratio": ratio,
            "decode_ratio_min": min(decode),
            "decode_ratio_max": max(decode),
            "prefill_ratio": median(prefill),
            "prefill_ratio_min": min(prefill),
            "prefill_ratio_max": max(prefill),
            "rounds": rounds,
            "rounds_below_limit": below,
            "threads": speed.threads,
        },
        limits={} if min_decode_ratio is None else {"min_decode_ratio": min_decode_ratio},
        engine=speed.engine,
    )
    return result, speed, original


def _median(speeds: Sequence[Speed]) -> Speed:
    """Every time, rate and size by its own median; what was asked for is the same in all."""
    measured = [item.name for item in fields(Speed) if item.name.endswith(("_seconds", "_per_s"))]
    return replace(
        speeds[0],
        peak_rss_bytes=int(median(speed.peak_rss_bytes for speed in speeds)),
        **{name: median(getattr(speed, name) for speed in speeds) for name in measured},
    )
