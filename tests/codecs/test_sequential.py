"""Scales and codes chosen block by block err less than the search's own, and less than codes on the search's scales."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from quantkit.codecs import codes, sequential
from quantkit.codecs.gguf import codecs
from quantkit.kernels import hessian
from quantkit.values import F32

WIDTH, ROWS = 512, 300  # two panels of the factor, two slabs of rows


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(spread: str) -> list[F32]:
    dice = np.random.default_rng(2)
    x = dice.standard_normal((1200, WIDTH))
    if spread == "rank-deficient":
        x = dice.standard_normal((1200, 60)) @ dice.standard_normal((60, WIDTH))
    if spread == "badly scaled":
        x = x * np.geomspace(1e-2, 1e2, WIDTH)
    return [np.ascontiguousarray(part, np.float32) for part in np.split(x @ dice.standard_normal((WIDTH, WIDTH)), 3)]


@pytest.mark.parametrize("kind", codes.types())
@pytest.mark.parametrize("spread", ["plain", "rank-deficient", "badly scaled"])
def test_the_output_errs_less_than_with_the_search_s_codes(kind: str, spread: str) -> None:
    given = inputs(spread)
    rows = np.random.default_rng(4).standard_normal((ROWS, WIDTH)).astype(np.float32)
    with ThreadPoolExecutor(2) as pool:
        factor = hessian.factor(given, 0.01, pool, blocks=sequential.BLOCKS)
        searched = codecs()[kind].encode(rows, factor.diagonal)
        found, loss = sequential.solve(kind, rows, searched, factor, pool)
        errors = hessian.outputs([rows - codecs()[kind].decode(each) for each in (found, searched)], given, pool)
    assert errors[0] < 0.9 * errors[1]
    left = (rows - codecs()[kind].decode(found))[:, factor.order].astype(np.float64) @ factor.lower()
    assert loss == pytest.approx(float(np.square(left).sum()), rel=1e-3)


def test_blocks_that_the_order_takes_apart_are_refused() -> None:
    rows = np.zeros((4, WIDTH), np.float32)
    searched = codecs()["Q4_K"].encode(rows, None)
    with ThreadPoolExecutor(1) as pool:
        factor = hessian.factor(inputs("badly scaled"), 0.01, pool)
        with pytest.raises(ValueError, match="of several blocks of 256"):
            sequential.solve("Q4_K", rows, searched, factor, pool)


def test_blocks_of_columns_stay_together_and_rise() -> None:
    given = inputs("plain")
    with ThreadPoolExecutor(1) as pool:
        factor = hessian.factor(given, 0.01, pool, blocks=(256, 32))
    for size in (256, 32):
        numbers = factor.order.reshape(-1, size) // size
        assert (numbers == numbers[:, :1]).all()
    sums = factor.diagonal[factor.order].reshape(-1, 8, 32).sum(2)
    assert (np.diff(sums, axis=1) >= 0).all()
    assert sums[0].sum() <= sums[1].sum()
    assert (np.diff(factor.diagonal[factor.order].reshape(-1, 32), axis=1) >= 0).all()
