"""Scores against float64 by hand, and of real runs of the tiny llama."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from tiny import tiny, write_llama

from quantkit.checks import divergence, perplexity
from quantkit.checks.scoring import compare, score
from quantkit.engines import llama_cpp
from quantkit.errors import WeightError
from quantkit.heads import project
from quantkit.values import F32, Runner
from quantkit.walk import walk


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.3, 10.0])
def test_scores_are_those_of_float64(scale: float, noise: float) -> None:
    rng = np.random.default_rng(5)
    reference = (rng.standard_normal((70, 5000)) * scale).astype(np.float32)
    artefact = (reference + rng.standard_normal(reference.shape) * noise).astype(np.float32)
    targets = rng.integers(0, 5000, 70).astype(np.int32)
    one, two, kld, same = compare(reference, artefact, targets)
    p, q = log_softmax(reference.astype(np.float64), 1), log_softmax(artefact.astype(np.float64), 1)
    rows = np.arange(70)
    np.testing.assert_allclose(one, -p[rows, targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(two, -q[rows, targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kld, (np.exp(p) * (p - q)).sum(1), rtol=1e-5, atol=2e-7)
    assert (kld >= 0).all()
    assert np.array_equal(same, p.argmax(1) == q.argmax(1))


def test_logits_that_are_not_finite_are_nan_scores() -> None:
    reference: F32 = np.zeros((4, 8), np.float32)
    artefact = reference.copy()
    artefact[1, 2], artefact[2, 2], artefact[3, 2] = np.nan, np.inf, -np.inf
    _, nll, kld, _ = compare(reference, artefact, np.zeros(4, np.int32))
    assert np.isnan(kld).tolist() == np.isnan(nll).tolist() == [False, True, True, True]


def test_two_vocabularies_are_not_compared() -> None:
    with pytest.raises(WeightError, match="not one model"):
        compare(np.zeros((3, 8), np.float32), np.zeros((3, 9), np.float32), np.zeros(3, np.int32))


def logits_of(runner: Runner, tokens: Any, index: int) -> F32:
    return runner.logits(tokens[index].tolist())


@pytest.mark.skipif(llama_cpp.available() is None, reason="llama-cpp-python is not installed")
def test_a_run_scores_the_second_half_of_every_chunk(tmp_path: Path) -> None:
    config, model, weights = tiny("llama")
    tokens = np.random.default_rng(9).integers(3, 300, (3, 64)).astype(np.int32)
    reference, to_logits = walk(config, weights, tokens, threads=1), project(config, weights, threads=1)
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        nll = -log_softmax(model(input_ids=ids).logits.double().numpy(), -1)
    # llama-perplexity: first = n_ctx / 2; n_ctx - 1 - first predictions, of the tokens first + 1 .. n_ctx - 1
    by_hand = np.array([[nll[c, t, tokens[c, t + 1]] for t in range(32, 63)] for c in range(3)])
    found = {}
    for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_0):
        path = tmp_path / f"{kind.name}.gguf"
        write_llama(path, weights.state, kind)
        runner = llama_cpp.open_runner(path, context=64, threads=1, exact=True)
        found[kind.name] = score(
            partial(logits_of, runner, tokens), tokens, reference, to_logits, first=32, engine=runner.engine
        )
        runner.close()
    same = found["F32"]
    np.testing.assert_allclose(same.nll_reference, by_hand, atol=1e-4)
    np.testing.assert_allclose(same.nll_artefact, by_hand, atol=1e-3)
    assert perplexity.check(same, max_ratio=1.01).verdict == "pass"
    assert divergence.check(same, max_mean=1e-4, min_same_top=0.9).verdict == "pass"
    assert divergence.check(found["Q4_0"], max_mean=1e-4).verdict == "fail"
