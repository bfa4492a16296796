"""Importance as the codecs take it: relative, floored, zeros filled."""

import numpy as np
import pytest

from quantkit.codecs.blocks import FLOOR, check_importance
from quantkit.codecs.gguf import codecs

WIDTH = 512
BALANCED = [name for name, codec in codecs().items() if codec.block > 1 and name != "Q8_0"]


def costs(given):
    return check_importance("x", given.astype(np.float32), None, given.size)[0]


def test_importance_is_relative_and_floored():
    np.testing.assert_allclose(costs(np.array([1e30, 1e-30, 2e30, 3e30])), [2 / 3, FLOOR, 4 / 3, 2], rtol=1e-6)


def test_unseen_columns_cost_as_much_as_their_neighbours():
    given = np.ones(96)
    given[32:64] = 4
    given[40:50] = 0  # a few of 32: the mean of the others
    given[64:90] = 0  # most of 32: all alike
    mean = given.mean()
    np.testing.assert_allclose(costs(given)[32:64], 4 / mean, rtol=1e-6)
    np.testing.assert_array_equal(costs(given)[64:], 1)
    np.testing.assert_allclose(costs(given)[:32], 1 / mean, rtol=1e-6)


@pytest.mark.parametrize("name", BALANCED)
def test_means_take_the_error_on_the_mean_input_away(name):
    """Almost all of it, for at most 2 % more of the diagonal's part."""
    rng = np.random.default_rng(1)
    rows = (0.02 * rng.standard_normal((64, WIDTH))).astype(np.float32)
    square = (rng.chisquare(1, WIDTH) + 0.01).astype(np.float32)
    mean = (np.sqrt(square) * rng.uniform(-0.9, 0.9, WIDTH)).astype(np.float32)
    codec = codecs()[name]
    plain, spared = (codec.decode(codec.encode(rows, square, given)) - rows for given in (None, mean))
    assert ((spared @ mean) ** 2).sum() < 0.01 * ((plain @ mean) ** 2).sum()
    assert (square * spared**2).sum() < 1.02 * (square * plain**2).sum()


@pytest.mark.parametrize("name", codecs())
def test_any_means_are_harmless(name):
    rng = np.random.default_rng(2)
    rows = (0.02 * rng.standard_normal((4, WIDTH))).astype(np.float32)
    square = (10.0 ** rng.uniform(-30, 30, WIDTH)).astype(np.float32)
    codec = codecs()[name]
    for mean in (np.sqrt(square), -1e3 * np.sqrt(square), np.zeros(WIDTH)):
        decoded = codec.decode(codec.encode(rows, square, mean.astype(np.float32)))
        assert abs(decoded - rows).max() <= 1.01 * abs(rows).max()
