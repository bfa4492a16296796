"""Cosine and rank of embeddings, and their gates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from quantkit.checks.embedding import check, pool
from quantkit.errors import WeightError
from quantkit.values import F32


def embeddings(noise: float) -> tuple[F32, F32]:
    dice = np.random.default_rng(1)
    wanted = dice.standard_normal((16, 24)).astype(np.float32)
    return (wanted + noise * dice.standard_normal(wanted.shape)).astype(np.float32), wanted


def test_figures_are_those_of_numpy_and_scipy() -> None:
    found, wanted = embeddings(0.3)
    values = check(found, wanted, chunks=4, engine="an engine").values
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (found, wanted)]
    cosine = (units[0] * units[1]).sum(1)
    assert values["cosine"] == pytest.approx(cosine.mean(), rel=1e-6)
    assert values["cosine_error"] == pytest.approx(cosine.reshape(4, 4).mean(1).std(ddof=1) / 2, rel=1e-5)
    ranks = []
    for text in range(16):
        ours, theirs = (np.delete(rows @ rows[text], text) for rows in units)
        ranks.append(spearmanr(ours, theirs).statistic)
    assert values["rank"] == pytest.approx(np.mean(ranks), rel=1e-4)


def test_gates() -> None:
    found, wanted = embeddings(0.05)
    scaled = check(3 * wanted, wanted, chunks=4, engine="", min_cosine=0.9999, min_rank=0.9999)
    assert (scaled.verdict, scaled.values["cosine"]) == ("pass", pytest.approx(1.0))
    assert check(found, wanted, chunks=4, engine="").verdict == "report"
    assert check(found, wanted, chunks=4, engine="", min_cosine=0.9).verdict == "pass"
    assert check(*embeddings(3.0), chunks=4, engine="", min_rank=0.9).verdict == "fail"
    found[3, 5] = np.nan
    broken = check(found, wanted, chunks=4, engine="", min_cosine=0.9)
    assert (broken.verdict, broken.values["non_finite"]) == ("fail", 1)
    with pytest.raises(WeightError, match="not one model"):
        check(found[:, :-1], wanted, chunks=4, engine="")


def test_pooling() -> None:
    hidden = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(pool(hidden, "mean"), hidden.mean(1))
    assert np.array_equal(pool(hidden, "last"), hidden[:, 2])
    assert np.array_equal(pool(hidden, "cls"), hidden[:, 0])
    assert np.array_equal(pool(hidden, None), hidden[:, 0])
