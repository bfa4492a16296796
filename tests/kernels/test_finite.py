import numpy as np
import pytest

from quantkit.kernels.finite import first_nonfinite_row


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 7, 32, 99])
def test_names_the_first_row(value, column):
    rows = np.ones((5, 100), np.float32)
    rows[3, column] = rows[4, 0] = value
    assert first_nonfinite_row(rows) == 3


def test_finite_extremes_pass():
    limits = np.finfo(np.float32)
    rows = np.array([[limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 0.0, -0.0]], np.float32)
    assert first_nonfinite_row(rows) == -1
    assert first_nonfinite_row(np.empty((0, 6), np.float32)) == -1
