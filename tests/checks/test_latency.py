"""Medians, turns and the gate of the latency check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantkit.checks.latency import check
from quantkit.values import Speed

ARTEFACT, BASELINE = Path("q4.gguf"), Path("f16.gguf")


def speeds(decode: list[float], calls: list[Path]) -> Callable[[Path], Speed]:
    """Measurements of the artefact by round; the baseline always decodes 10 tokens per second."""
    left = list(decode)

    def measure(path: Path) -> Speed:
        calls.append(path)
        rate = left.pop(0) if path == ARTEFACT else 10.0
        return Speed("an engine", 2, 512, 64, 0.1, 1.0, 10 * rate, rate, int(100 * rate))

    return measure


def test_the_median_of_interleaved_rounds_decides() -> None:
    calls: list[Path] = []
    result, mine, other = check(speeds([21.0, 2.0, 20.0], calls), ARTEFACT, BASELINE, rounds=3, min_decode_ratio=1.5)
    assert calls == [BASELINE, ARTEFACT, ARTEFACT, BASELINE, BASELINE, ARTEFACT]
    assert result.verdict == "pass"
    assert result.values["decode_ratio"] == result.values["prefill_ratio"] == 2.0
    assert (result.values["decode_ratio_min"], result.values["decode_ratio_max"]) == (0.2, 2.1)
    assert "1 of 3 rounds below it" in result.summary
    assert (mine.decode_tokens_per_s, mine.peak_rss_bytes, other.decode_tokens_per_s) == (20.0, 2000, 10.0)


def test_a_slow_artefact_fails_and_no_limit_reports() -> None:
    result, _, _ = check(speeds([14.0] * 3, []), ARTEFACT, BASELINE, min_decode_ratio=1.5)
    assert result.verdict == "fail"
    result, _, _ = check(speeds([14.0], []), ARTEFACT, BASELINE, rounds=1)
    assert (result.verdict, dict(result.limits)) == ("report", {})


def test_prefill_has_a_gate_of_its_own_and_an_encoder_no_decode() -> None:
    result, _, _ = check(speeds([14.0] * 3, []), ARTEFACT, BASELINE, min_decode_ratio=1.2, min_prefill_ratio=1.5)
    assert (result.verdict, dict(result.limits)) == ("fail", {"min_decode_ratio": 1.2, "min_prefill_ratio": 1.5})

    def measure(path: Path) -> Speed:
        return Speed("an engine", 2, 128, 0, 0.1, 1.0, 30.0 if path == ARTEFACT else 10.0, None, 100)

    result, mine, _ = check(measure, ARTEFACT, BASELINE, min_prefill_ratio=1.5)
    assert (result.verdict, result.values["prefill_ratio"], mine.decode_tokens_per_s) == ("pass", 3.0, None)
    assert "decode" not in result.summary
    assert "decode_ratio" not in result.values
