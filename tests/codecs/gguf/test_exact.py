"""What lies on a type's grid already is stored to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.codecs.gguf import codecs


@settings(deadline=None)
@given(st.sampled_from([("Q4_0", 4), ("Q8_0", 4), ("Q8_0", 8)]), st.sampled_from([32, 64, 128]), st.integers(0, 2**32 - 1))
def test_grids_come_back_to_the_bit(kind: tuple[str, int], group: int, seed: int) -> None:
    dice, (name, bits) = np.random.default_rng(seed), kind
    codes = dice.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 256)) * (dice.random((5, 256)) < dice.random())
    scales = np.exp(dice.normal(-5, 2, (5, 256 // group))).astype(np.float16).astype(np.float32)
    rows = codes.astype(np.float32) * np.repeat(scales, group, 1)
    codec = codecs()[name]
    assert codec.exact is not None
    packed = codec.exact(rows)
    assert packed is not None
    assert np.array_equal(codec.decode(packed), rows)
    assert np.array_equal(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name]), rows)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_other_rows_lie_on_no_grid(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    codec = codecs()[name]
    assert codec.exact is not None
    assert codec.exact(rows) is None
    one = np.zeros((1, 64), np.float32)
    one[0, :4] = [1.0, 0.5, 0.25, 0.3]
    assert codec.exact(one) is None
