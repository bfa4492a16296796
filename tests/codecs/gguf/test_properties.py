"""Every codec of the folder on rows and importance of any kind: finite, bounded, valid to llama.cpp, the same in any slabs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.codecs.gguf import codecs
from quantkit.errors import WeightError

WIDTH = 512
ROWS = 5
HALF = 65504.0  # the greatest half; no type's range is smaller
TINY = 1e-5  # what halves below 2^-14 may lose: a step of 2^-24, times the type's greatest code
QUANTISED = [name for name in codecs() if name not in ("F32", "F16", "BF16")]

# Of a row's greatest magnitude, what a weight may be off by without importance. With it, up to twice the magnitude: a scale
# or an offset may serve the one column of its block that counts, and the levels of the others lie where they lie.
BOUND = {
    "F32": 0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 0.005, "Q6_K": 0.06, "Q5_0": 0.07, "Q5_1": 0.07, "Q5_K": 0.1,
    "Q4_0": 0.15, "Q4_1": 0.15, "Q4_K": 0.2, "IQ4_NL": 0.2, "IQ4_XS": 0.2, "MXFP4": 0.3, "Q3_K": 0.4, "Q2_K": 0.7,
    "TQ1_0": 1, "TQ2_0": 1,
}  # fmt: skip


@st.composite
def some_rows(draw):
    """(ROWS, WIDTH) float32 within 65504: noise, constants, outliers, subnormals, signed zeros, one-sided, sparse."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.standard_normal((ROWS, WIDTH))
    kind = draw(st.sampled_from(["noise", "constant", "outlier", "subnormal", "zeros", "one-sided", "sparse", "blocks"]))
    if kind == "constant":
        noise = np.repeat(noise[:, :1], WIDTH, axis=1)
    elif kind == "outlier":
        noise[np.arange(ROWS), rng.integers(0, WIDTH, ROWS)] *= 10.0 ** rng.uniform(0, 6, ROWS)
    elif kind == "subnormal":
        noise *= 1e-40
    elif kind == "zeros":
        noise = np.where(noise > 0, 0.0, -0.0)
    elif kind == "one-sided":
        noise = 5 + abs(noise)
    elif kind == "sparse":
        noise *= rng.random((ROWS, WIDTH)) < 0.02
    elif kind == "blocks":
        noise *= np.repeat(10.0 ** rng.uniform(-8, 0, (ROWS, WIDTH // 32)), 32, axis=1)
    greatest = max(abs(noise).max(), 1e-300)
    size = draw(st.sampled_from([greatest, 1e-8, 1e-4, 0.02, 1.0, 1e3, HALF]))
    return (noise * (min(size, HALF) / greatest if kind != "subnormal" else 1)).astype(np.float32)


@st.composite
def some_importance(draw):
    """None, or E[x^2] (WIDTH,) of zeros, one column, or thirty orders of magnitude either way, and with or without E[x]."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["none", "zero", "one", "plain", "wide", "wide and zeros"]))
    squares = {
        "none": None,
        "zero": np.zeros(WIDTH),
        "one": (np.arange(WIDTH) == rng.integers(WIDTH)) * 10.0 ** rng.uniform(-30, 30),
        "plain": rng.chisquare(1, WIDTH),
        "wide": 10.0 ** rng.uniform(-30, 30, WIDTH),
        "wide and zeros": 10.0 ** rng.uniform(-30, 30, WIDTH) * (rng.random(WIDTH) < 0.5),
    }[kind]
    if squares is None:
        return None, None
    means = np.sqrt(squares) * rng.uniform(-1, 1, WIDTH) if draw(st.booleans()) else None
    return squares.astype(np.float32), None if means is None else means.astype(np.float32)


@pytest.mark.parametrize("name", codecs())
@settings(max_examples=120, deadline=None)
@given(rows=some_rows(), seen=some_importance())
def test_any_rows_with_any_importance(ggml, name, rows, seen):
    codec = codecs()[name]
    encoded = codec.encode(rows, *seen)
    assert ggml.accepts(codec, np.ascontiguousarray(encoded))
    decoded = codec.decode(encoded)
    assert np.isfinite(decoded).all()
    most = abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    part = BOUND.get(name, 1) if seen[0] is None or not seen[0].any() or name in ("F32", "F16", "BF16", "Q8_0") else 2
    assert (abs(decoded.astype(np.float64) - rows) <= part * most + TINY).all()


@pytest.mark.parametrize("name", codecs())
@settings(max_examples=8, deadline=None)
@given(rows=some_rows(), seen=some_importance())
def test_slabs_and_threads_leave_the_bytes_alone(name, rows, seen):
    codec = codecs()[name]
    slabs = [rows[:1], rows[1:4], rows[4:]]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda slab: codec.encode(np.ascontiguousarray(slab), *seen), slabs))
    np.testing.assert_array_equal(np.concatenate(parts), codec.encode(rows, *seen))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", QUANTISED)
def test_what_no_scale_can_say_names_its_row(name, weighted):
    """Block types end where their half-precision scales do, MXFP4 short of where its exponents do."""
    codec = codecs()[name]
    rows = np.zeros((3, WIDTH), np.float32)
    rows[1, 300] = -np.finfo(np.float32).max
    seen = np.arange(WIDTH, dtype=np.float32) if weighted else None
    with pytest.raises(WeightError, match="row 1 of them"):
        codec.encode(rows, seen)
    rows[1, 300] = -HALF
    assert np.isfinite(codec.decode(codec.encode(rows, seen))).all()
