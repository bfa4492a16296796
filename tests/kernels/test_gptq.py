"""GPTQ's codes against a textbook's twenty lines, H's factor against numpy's, the grids against a search of everything."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantkit.errors import InputError, WeightError
from quantkit.kernels import gptq, hessian
from quantkit.values import F32


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(2) as threads:
        yield threads
    torch.set_num_threads(before)


def inputs(kind: str, width: int) -> list[F32]:
    """Four micro-batches of activations."""
    dice = np.random.default_rng(len(kind))
    x = dice.standard_normal((4, 2 * width, width))
    if kind == "correlated":
        x = x @ dice.standard_normal((width, width)) * 0.1 + 0.5 * dice.standard_normal(width)
    if kind == "rank-deficient":
        x = dice.standard_normal((4, 2 * width, width // 3)) @ dice.standard_normal((width // 3, width))
    if kind == "badly scaled":
        x = x * np.geomspace(1e-3, 1e3, width)
    if kind == "dead columns":
        x[..., 5:9] = 0
    return list(x.astype(np.float32))


KINDS = ["random", "correlated", "rank-deficient", "badly scaled", "dead columns"]


def damped(batches: list[F32], damp: float) -> NDArray[np.float64]:
    x = np.concatenate(batches).astype(np.float64)
    h = x.T @ x
    mean = h.diagonal().mean()
    h[h.diagonal() == 0, h.diagonal() == 0] = mean
    return np.asarray(h + damp * mean * np.eye(len(h)))


def textbook(weight: F32, h: NDArray[np.float64], grid: gptq.Grid, order: NDArray[np.intp]) -> tuple[Any, Any]:
    """Codes, and how near each came to a tie: GPTQ as Frantar et al. give it, on static groups."""
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    left, codes, ties = weight[:, order].astype(np.float64), np.empty(weight.shape, np.uint8), np.empty(weight.shape)
    for i, column in enumerate(order):
        scale, zero = (a[:, column // grid.group].astype(np.float64) for a in (grid.scales, grid.zeros))
        ideal = left[:, i] / scale + zero
        codes[:, column] = np.clip(np.rint(ideal), 0, 2**grid.bits - 1)
        ties[:, column] = np.abs(ideal - np.floor(ideal) - 0.5)
        error = (left[:, i] - scale * (codes[:, column] - zero)) / upper[i, i]
        left[:, i:] -= np.outer(error, upper[i, i:])
    return codes, ties


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, True), (4, -1, False), (3, 64, True), (2, 32, False), (8, 64, True)]
)
@pytest.mark.parametrize("act_order", [True, False])
def test_codes_are_the_textbooks(kind: str, bits: int, group: int, symmetric: bool, act_order: bool, pool: Executor) -> None:
    width, damp = 192, 0.01
    weight = np.random.default_rng(1).standard_normal((70, width)).astype(np.float32)
    batches = inputs(kind, width)
    factor = hessian.factor(batches, damp, pool, act_order=act_order)
    grid = gptq.fit(weight, factor.diagonal + 1e-3, bits=bits, group=group, symmetric=symmetric, pool=pool)
    solved = gptq.solve(weight, grid, factor, pool)
    h = damped(batches, damp)
    codes, ties = textbook(weight, h, grid, factor.order[::-1])
    for row in np.flatnonzero((codes != solved.codes).any(1)):  # equal up to the first tie, after which all may differ
        first = next(column for column in factor.order[::-1] if codes[row, column] != solved.codes[row, column])
        assert ties[row, first] < 2e-3
    assert (codes == solved.codes).all(1).mean() > 0.9
    error = (weight - solved.weights()).astype(np.float64)
    assert solved.loss == pytest.approx(np.einsum("ij,jk,ik->", error, h, error), rel=1e-3)
    if kind == "dead columns":
        assert factor.dead.tolist() == [5, 6, 7, 8]
        assert np.array_equal(solved.codes[:, 5:9], gptq.nearest(weight, grid)[:, 5:9])


def test_bytes_do_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    weight, found = np.random.default_rng(1).standard_normal((200, 600)).astype(np.float32), []
    for threads in (1, 2, 3):
        with ThreadPoolExecutor(threads) as pool:
            factor = hessian.factor(inputs("correlated", 600), 0.01, pool)
            grid = gptq.fit(weight, factor.diagonal, bits=4, group=120, symmetric=False, pool=pool)
            found.append(
                (factor.lower().tobytes(), grid.scales.tobytes(), gptq.solve(weight, grid, factor, pool).codes.tobytes())
            )
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_the_factor_is_numpys(pool: Executor) -> None:
    batches = inputs("correlated", 700)
    factor = hessian.factor(batches, 0.01, pool)
    h = damped(batches, 0.01)[np.ix_(factor.order, factor.order)]
    np.testing.assert_allclose(factor.lower(), np.linalg.cholesky(h), rtol=1e-4, atol=1e-5 * np.sqrt(h.max()))
    assert np.all(np.diff(factor.diagonal[factor.order]) >= 0)
    assert (factor.damping, len(factor.dead)) == (0.01, 0)


def test_damping_rises_until_there_is_a_factor(pool: Executor) -> None:
    dice = np.random.default_rng(0)  # of rank 20: rounding in float32 is a larger part than the damping
    batches = [(dice.standard_normal((500, 20)) @ dice.standard_normal((20, 300))).astype(np.float32)]
    factor = hessian.factor(batches, 1e-7, pool)
    assert factor.damping > 1e-7
    with pytest.raises(WeightError, match="300 of 300 columns of its inputs hold NaN or infinity"):
        hessian.factor([np.full((4, 300), np.nan, np.float32)], 0.01, pool)


@pytest.mark.parametrize("bits", gptq.BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_beats_the_extremes(bits: int, symmetric: bool, pool: Executor) -> None:
    dice = np.random.default_rng(3)
    weight = (dice.standard_normal((64, 256)) * dice.choice([1, 3], (64, 256), p=[0.95, 0.05])).astype(np.float32)
    importance = np.exp(dice.standard_normal(256)).astype(np.float32)

    def error(search: bool) -> float:
        grid = gptq.fit(weight, importance, bits=bits, group=64, symmetric=symmetric, pool=pool, search=search)
        assert np.array_equal(grid.scales, grid.scales.astype(np.float16).astype(np.float32))
        assert symmetric == bool((grid.zeros == 2 ** (bits - 1)).all())
        found = gptq.Solved(grid, gptq.nearest(weight, grid), 0.0).weights()
        return float((np.square(weight - found) * importance).sum())

    assert error(search=True) < error(search=False)


def test_degenerate_groups_have_a_grid(pool: Executor) -> None:
    weight = np.zeros((4, 64), np.float32)
    weight[1] = 1e-9
    weight[2, :32], weight[3] = 5, -2
    for symmetric in (True, False):
        for search in (True, False):
            grid = gptq.fit(weight, np.ones(64, np.float32), bits=4, group=32, symmetric=symmetric, pool=pool, search=search)
            found = gptq.Solved(grid, gptq.nearest(weight, grid), 0.0).weights()
            np.testing.assert_allclose(found, weight, rtol=0.07, atol=1e-6)


def test_a_group_that_does_not_divide_is_refused(pool: Executor) -> None:
    weight = np.zeros((4, 96), np.float32)
    with pytest.raises(InputError, match="group: 64 does not divide the 96 columns; these do: 32, -1"):
        gptq.fit(weight, np.ones(96, np.float32), bits=4, group=64, symmetric=True, pool=pool)


def test_the_correction_makes_up_for_inputs_that_went_astray(pool: Executor) -> None:
    dice = np.random.default_rng(2)
    originals = inputs("correlated", 300)
    turned = dice.standard_normal((300, 300)).astype(np.float32) / 17
    astray = [x + 0.1 * x @ turned for x in originals]
    weight = dice.standard_normal((64, 300)).astype(np.float32)
    factor = hessian.factor(astray, 1e-4, pool)
    shift = hessian.correction(astray, originals, factor, pool)
    corrected = weight + hessian.multiply(weight, shift, pool)

    def error(candidate: F32) -> float:
        return sum(float(np.square(x @ weight.T - y @ candidate.T).sum()) for x, y in zip(originals, astray, strict=True))

    x, y = (np.concatenate(each).astype(np.float64) for each in (originals, astray))
    h = damped(astray, 1e-4)
    exact = weight + weight @ np.linalg.solve(h, y.T @ (x - y)).T
    np.testing.assert_allclose(corrected, exact, atol=2e-3)
    assert error(corrected) < 0.02 * error(weight)
