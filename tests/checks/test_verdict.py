"""Errors clustered by chunk, and the three answers that a gate can give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.checks import divergence, perplexity
from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import Estimate, at_least, at_most, estimate


def test_the_error_is_that_of_cluster_robust_regression() -> None:
    values = np.random.default_rng(1).standard_normal((16, 255)) + np.random.default_rng(2).standard_normal((16, 1))
    found = estimate(values)
    residual = values - values.mean()
    count, clusters = values.size, len(values)
    # CR1 of a mean: sum over clusters of (sum of residuals)^2, times G/(G-1) * (N-1)/(N-K) with K = 1
    sandwich = np.square(residual.sum(1)).sum() / count**2 * clusters / (clusters - 1) * (count - 1) / (count - 1)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(math.sqrt(sandwich))
    assert found.error > 5 * values.std() / math.sqrt(count), "tokens of a chunk are not independent"


def test_the_margin_holds_the_true_mean_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(2000):
        found = estimate(rng.standard_normal((6, 8)) + rng.standard_normal((6, 1)))
        covered += found.mean + found.margin >= 0
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("mean", "error", "verdict"),
    [(0.01, 0.001, "pass"), (0.09, 0.001, "fail"), (0.045, 0.01, "unresolved"), (0.055, 0.01, "unresolved")],
)
def test_a_gate_says_what_it_can_tell(mean: float, error: float, verdict: str) -> None:
    assert at_most(Estimate(mean, error, 16), 0.05)[0] == verdict
    assert at_least(Estimate(1 - mean, error, 16), 0.95)[0] == verdict


def test_an_unresolved_gate_says_how_many_chunks_would_do() -> None:
    verdict, note = at_most(Estimate(0.04, 0.01, 16), 0.05)
    needed = int(note.split("about ")[1].split()[0])
    assert (verdict, needed) == ("unresolved", 50)  # 16 * (1.753 * 0.01 / 0.01)^2
    assert at_most(Estimate(0.04, 0.01 * math.sqrt(16 / needed), needed), 0.05)[0] == "pass"
    assert "one chunk" in at_most(estimate(np.zeros((1, 8))), 0.05)[1]


def scores(shift: float, *, chunks: int = 8) -> Scores:
    rng = np.random.default_rng(6)
    nll = rng.gamma(2.0, 1.5, (chunks, 31))
    kld = np.abs(rng.standard_normal(nll.shape)) * max(shift, 1e-6)
    return Scores(nll, nll + shift + 1e-3 * rng.standard_normal(nll.shape), kld, kld < 0.1, "an engine")


def test_perplexities_and_their_ratio() -> None:
    data = scores(math.log(1.03))
    result = perplexity.check(data, max_ratio=1.05)
    assert result.verdict == "pass"
    assert result.values["perplexity"] == pytest.approx(math.exp(data.nll_artefact.mean()))
    assert result.values["reference_perplexity"] == pytest.approx(math.exp(data.nll_reference.mean()))
    assert result.values["ratio"] == pytest.approx(1.03, rel=1e-3)
    assert float(result.values["ratio_error"]) < 1e-3 < float(result.values["perplexity_error"])
    assert result.limits == {"max_ratio": 1.05}
    assert perplexity.check(data, max_ratio=1.02).verdict == "fail"
    assert perplexity.check(data).verdict == "report"


def test_divergence_percentiles_and_gates() -> None:
    data = scores(0.05)
    result = divergence.check(data, max_mean=0.06, min_same_top=0.5)
    assert result.verdict == "pass"
    assert result.values["kld_median"] == pytest.approx(np.median(data.kld))
    assert result.values["kld_p99"] == pytest.approx(np.percentile(data.kld, 99))
    assert result.values["max_kld"] == data.kld.max()
    assert divergence.check(data, max_mean=0.06, min_same_top=0.9999).verdict == "fail", "the worst gate decides"
    assert divergence.check(data).verdict == "report"


def test_broken_logits_fail_even_without_a_limit() -> None:
    data = scores(0.05)
    data.nll_artefact[0, 0] = data.kld[0, 0] = np.nan
    for result in (perplexity.check(data), divergence.check(data), perplexity.check(data, max_ratio=2.0)):
        assert result.verdict == "fail"
        assert result.values["non_finite"] == 1
        assert all(isinstance(value, str) or math.isfinite(value) for value in result.values.values())
        assert "1 of 248 positions" in result.summary


def test_one_chunk_is_unresolved_and_its_values_are_json() -> None:
    result = perplexity.check(scores(0.0, chunks=1), max_ratio=1.05)
    assert result.verdict == "unresolved"
    assert "ratio_error" not in result.values
    assert all(isinstance(value, str) or math.isfinite(value) for value in result.values.values())


def test_a_hopeless_artefact_fails_rather_than_overflows() -> None:
    assert perplexity.check(scores(900.0), max_ratio=1.05).verdict == "fail"


def test_chunk_means_average_to_the_figure_and_broken_ones_are_left_out() -> None:
    data = scores(0.05)
    result = divergence.check(data)
    assert np.mean(result.chunk_means["kld"]) == pytest.approx(result.values["mean_kld"])
    assert np.mean(result.chunk_means["same_top"]) == pytest.approx(result.values["same_top"])
    data.kld[0, 0] = np.nan
    assert set(divergence.check(data).chunk_means) == {"same_top"}
    assert set(perplexity.check(data).chunk_means) == {"nll", "nll_reference"}
