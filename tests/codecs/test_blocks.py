"""Importance as the codecs take it: zeros, means, gains; and the ranges that half-precision scales set."""

import numpy as np
import pytest

from quantkit.codecs.blocks import FLOOR, check_importance, check_range, cut, means
from quantkit.codecs.gguf import codecs
from quantkit.errors import WeightError

WIDTH = 512
FEEDBACK = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"]


def test_importance_is_relative_and_floored():
    given = np.array([1e30, 1e-30, 2e30, 3e30], np.float32)
    np.testing.assert_allclose(check_importance("x", given, 4), [2 / 3, FLOOR, 4 / 3, 2], rtol=1e-6)


def test_unseen_columns_weigh_as_their_neighbours():
    given = np.ones(96, np.float32)
    given[32:64] = 4
    given[40:50] = 0  # a few of 32: the mean of the others
    given[64:90] = 0  # most of 32: all alike
    relative = check_importance("x", given, 96)
    mean = given.mean()
    np.testing.assert_allclose(relative[32:64], 4 / mean, rtol=1e-6)
    np.testing.assert_array_equal(relative[64:], 1)
    np.testing.assert_allclose(relative[:32], 1 / mean, rtol=1e-6)


@pytest.mark.parametrize("given", [np.ones((1, 32)), np.ones((3, 32)), np.ones(31)])
def test_other_shapes_are_refused(given):
    with pytest.raises(ValueError, match=r"x: importance must have shape \(32,\), one E\[x\^2\] per column, or \(2, 32\)"):
        check_importance("x", given.astype(np.float32), 32)


def test_gains_are_those_of_least_cost():
    rng = np.random.default_rng(0)
    square = rng.chisquare(1, WIDTH).astype(np.float32) + np.float32(0.01)
    mean = (np.sqrt(square) * rng.uniform(-1, 1, WIDTH)).astype(np.float32)
    rows = np.zeros((1, WIDTH), np.float32)
    given = np.stack([square, mean])
    _, weights = cut("x", rows, given, 32)
    m, gains = means(given, weights)
    start = WIDTH - 96  # the columns from here on
    h = np.diag(weights.reshape(-1)[start:].astype(np.float64)) + np.outer(m.reshape(-1)[start:], m.reshape(-1)[start:])
    shift = np.linalg.solve(h, m.reshape(-1)[start:])  # least cost for an owed error of one
    np.testing.assert_allclose(gains.reshape(-1)[start : start + 32], shift[:32], rtol=1e-5)
    assert means(square, weights)[0].size == means(None, weights)[1].size == 0


@pytest.mark.parametrize("name", FEEDBACK)
def test_means_lower_the_error_on_the_mean_input(name):
    """To what the last of 16 blocks leaves, for at most 2 % more of the diagonal's part."""
    rng = np.random.default_rng(1)
    rows = (0.02 * rng.standard_normal((64, WIDTH))).astype(np.float32)
    square = rng.chisquare(1, WIDTH).astype(np.float32) + np.float32(0.01)
    mean = (np.sqrt(square) * rng.uniform(-0.9, 0.9, WIDTH)).astype(np.float32)
    codec = codecs()[name]
    plain, spared = (codec.decode(codec.encode(rows, given)) - rows for given in (square, np.stack([square, mean])))
    assert ((spared @ mean) ** 2).sum() < 0.2 * ((plain @ mean) ** 2).sum()
    assert (square * spared**2).sum() < 1.02 * (square * plain**2).sum()


@pytest.mark.parametrize("name", codecs())
def test_any_means_are_harmless(name):
    rng = np.random.default_rng(2)
    rows = (0.02 * rng.standard_normal((4, WIDTH))).astype(np.float32)
    square = (10.0 ** rng.uniform(-30, 30, WIDTH)).astype(np.float32)
    codec = codecs()[name]
    for mean in (np.sqrt(square), -1e15 * np.sqrt(square), np.zeros(WIDTH)):
        decoded = codec.decode(codec.encode(rows, np.stack([square, mean.astype(np.float32)])))
        assert abs(decoded - rows).max() <= 1.01 * abs(rows).max()


def test_range_names_row_and_remedy():
    rows = np.zeros((3, 4), np.float32)
    rows[2, 1] = -65504.5
    check_range("x", rows, 2)
    with pytest.raises(WeightError, match=r"row 2 of them holds 65504.5, x ends at 65504, .* BF16 and F32 hold it"):
        check_range("x", rows, 1)
