"""Every codec of the folder: layout, an independent decoder, properties. A new file is covered without an edit here."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.codecs.gguf import codecs
from quantkit.errors import WeightError

ALL = pytest.mark.parametrize("name", codecs())
QUANTISED = pytest.mark.parametrize("name", [name for name in codecs() if name not in ("F32", "F16", "BF16")])
WIDTH = 1024


def gaussian(rows=6, width=WIDTH, scale=0.02):
    return (scale * np.random.default_rng(1).standard_normal((rows, width))).astype(np.float32)


def importance(width=WIDTH):
    return np.random.default_rng(2).chisquare(1, width).astype(np.float32)


@ALL
def test_facts_are_those_of_gguf(name):
    codec = codecs()[name]
    kind = gguf.GGMLQuantizationType(codec.ggml_type)
    assert kind.name == name
    assert gguf.GGML_QUANT_SIZES[kind] == (codec.block, codec.block_bytes)
    assert codec.encode(gaussian(), None).shape == (6, codec.row_bytes(WIDTH))


@ALL
@pytest.mark.parametrize("data", ["encoded", "random"])
def test_decodes_as_gguf_does(name, data):
    codec = codecs()[name]
    encoded = codec.encode(gaussian(), None)
    if data == "random":  # every code and scale pattern, not only those that our encoder writes
        encoded = np.random.default_rng(3).integers(0, 256, (64, encoded.shape[1]), np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(encoded, gguf.GGMLQuantizationType(codec.ggml_type)).reshape(len(encoded), WIDTH)
        ours = codec.decode(encoded)
    assert ours.dtype == np.float32
    finite = np.isfinite(theirs)
    assert finite.mean() > 0.5
    np.testing.assert_allclose(
        ours[finite], theirs[finite], rtol=1e-5, atol=1e-6 * abs(theirs[finite]).max() * (data == "random")
    )
    if data == "encoded":
        np.testing.assert_array_equal(ours, theirs)


@ALL
def test_error_is_at_most_that_of_gguf_py(name):
    codec = codecs()[name]
    kind = gguf.GGMLQuantizationType(codec.ggml_type)
    rows = gaussian(64)
    try:
        theirs = gguf.dequantize(gguf.quantize(rows, kind), kind)
    except NotImplementedError:
        pytest.skip("gguf-py cannot encode this type")
    ours = codec.decode(codec.encode(rows, None))
    assert ((ours - rows) ** 2).sum() <= 1.0001 * ((theirs - rows) ** 2).sum()


@QUANTISED
def test_reencoding_what_was_decoded_loses_little(name):
    codec = codecs()[name]
    once = codec.decode(codec.encode(gaussian(), None))
    twice = codec.decode(codec.encode(once, None))
    assert ((twice - once) ** 2).sum() <= 0.3 * ((once - gaussian()) ** 2).sum()


@QUANTISED
def test_importance_lowers_the_error_it_weighs(name):
    codec = codecs()[name]
    rows, weight = gaussian(32), importance()
    error = [(weight * (codec.decode(codec.encode(rows, given)) - rows) ** 2).sum() for given in (None, weight)]
    assert error[1] <= error[0] * (1.0 if name == "Q8_0" else 0.995)


@QUANTISED
@pytest.mark.parametrize("weights", ["none", "zero", "zero blocks", "tiny", "huge"])
def test_odd_importance_is_harmless(name, weights):
    codec = codecs()[name]
    given = {
        "none": None,
        "zero": np.zeros(WIDTH, np.float32),
        "zero blocks": np.repeat([0.0, 1.0], WIDTH // 2).astype(np.float32),
        "tiny": 1e-30 * importance(),
        "huge": 1e30 * importance(),
    }[weights]
    decoded = codec.decode(codec.encode(gaussian(), given))
    coarse = codec.block_bytes * 8 / codec.block < 4.4
    assert abs(decoded - gaussian()).max() < (0.06 if coarse else 0.03)  # a peak that no input meets may be cut off


@ALL
def test_zero_rows_and_no_rows(name):
    codec = codecs()[name]
    assert not codec.decode(codec.encode(np.zeros((2, WIDTH), np.float32), None)).any()
    empty = codec.encode(np.zeros((0, WIDTH), np.float32), None)
    assert codec.decode(empty).shape == (0, WIDTH)


@ALL
def test_refuses_what_it_cannot_take(name):
    codec = codecs()[name]
    with pytest.raises(ValueError, match=f"{name}: rows must be a C-contiguous float32"):
        codec.encode(gaussian().astype(np.float64), None)
    with pytest.raises(ValueError, match="not contiguous"):
        codec.encode(gaussian()[:, ::2], None)
    if codec.block > 1:
        with pytest.raises(ValueError, match=f"a width of {codec.block + 1} is not a multiple of its block of {codec.block}"):
            codec.encode(np.zeros((1, codec.block + 1), np.float32), None)
        with pytest.raises(ValueError, match="importance must have shape"):
            codec.encode(gaussian(), importance(WIDTH // 2))
        with pytest.raises(ValueError, match="finite and >= 0"):
            codec.encode(gaussian(), -importance())
    if codec.block_bytes > 1:
        with pytest.raises(ValueError, match="expected uint8 rows"):
            codec.decode(np.zeros((1, codec.block_bytes + 1), np.uint8))


def test_read_only_rows_are_taken():
    rows = gaussian()
    rows.flags.writeable = False
    for codec in codecs().values():
        assert codec.encode(rows, None).shape == (6, codec.row_bytes(WIDTH))


def test_f16_refuses_overflow_and_bf16_saturates():
    rows = np.array([[1.0, 2.0], [65504.0, -7e4]], np.float32)
    with pytest.raises(WeightError, match=r"row 1 of them holds 70000, F16 ends at 65504"):
        codecs()["F16"].encode(rows, None)
    limit = np.array([[np.finfo(np.float32).max]], np.float32)
    assert np.isfinite(codecs()["BF16"].decode(codecs()["BF16"].encode(limit, None))).all()


REACH = {"Q4_0": 2 / 15, "Q4_1": 1 / 15, "Q5_0": 2 / 31, "Q5_1": 1 / 31, "Q8_0": 1 / 127}


@QUANTISED
@settings(max_examples=40, deadline=None)
@given(
    rows=hnp.arrays(
        np.float32,
        (2, 256),
        elements=st.floats(-65504, 65504, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32) | st.just(0.0),
    ),
    weighted=st.booleans(),
)
def test_finite_in_finite_out_within_the_range(name, rows, weighted):
    codec = codecs()[name]
    decoded = codec.decode(codec.encode(rows, importance(256) if weighted else None))
    assert np.isfinite(decoded).all()
    reach = abs(rows).max(axis=1, keepdims=True)
    most = 1.0 if weighted or name.startswith("TQ") else 0.6  # three values are too few for an outlier and the rest
    assert (abs(decoded - rows) <= reach * most + 1e-6).all()
    if name in REACH and not weighted:  # the squared error is at most that of plain rounding over the row's range
        step = np.maximum(np.ptp(rows, axis=1, keepdims=True), reach) * REACH[name]
        assert ((decoded - rows) ** 2).mean() <= (step**2).mean() + 1e-10


@ALL
@pytest.mark.parametrize("weighted", [False, True])
def test_every_row_stands_alone(name, weighted):
    codec = codecs()[name]
    rows, columns = gaussian(37, 512), importance(512) if weighted else None
    parts = [codec.encode(rows[start : start + 5], columns) for start in range(0, 37, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), codec.encode(rows, columns))


@QUANTISED
def test_weights_beyond_the_type_s_range_are_named(name):
    if name == "MXFP4":
        pytest.skip("its scales are powers of two up to 2^126")
    rows = gaussian()
    rows[3, 17] = 1e30
    with pytest.raises(WeightError, match=f"row 3 of them holds 1e\\+30, {name} ends at"):
        codecs()[name].encode(rows, None)


def mean_of(squares):
    """Means that inputs with these mean squares may have, signs at random."""
    signs = np.where(np.random.default_rng(4).random(squares.size) < 0.5, -1, 1)
    return (0.8 * signs * np.sqrt(squares)).astype(np.float32)


@QUANTISED
def test_means_spare_the_row_s_mean_output(name):
    codec, rows, squares = codecs()[name], gaussian(32), importance()
    mean = mean_of(squares)
    plain, balanced = (codec.decode(codec.encode(rows, squares, given)).astype(np.float64) - rows for given in (None, mean))
    if name == "Q8_0":
        np.testing.assert_array_equal(plain, balanced)
        return
    assert np.square(balanced @ mean).mean() < 0.02 * np.square(plain @ mean).mean()
    assert (squares * balanced**2).sum() < 1.06 * (squares * plain**2).sum()


@QUANTISED
@settings(max_examples=40, deadline=None)
@given(
    rows=hnp.arrays(np.float32, (2, 512), elements=st.floats(-60000, 60000, width=32)),
    squares=hnp.arrays(np.float32, 512, elements=st.floats(0, 2.0**60, width=32)),
    part=st.floats(0, 1),
)
def test_any_importance_and_mean_are_survived(name, rows, squares, part):
    codec = codecs()[name]
    mean = (part * np.sqrt(squares)).astype(np.float32)
    encoded = codec.encode(rows, squares, mean)
    np.testing.assert_array_equal(np.concatenate([codec.encode(rows[[row]], squares, mean) for row in range(2)]), encoded)
    assert np.isfinite(codec.decode(encoded)).all()


@QUANTISED
@pytest.mark.parametrize("given", ["plain", "importance", "means"])
def test_llama_cpp_accepts_what_is_written(ggml, name, given):
    codec, squares = codecs()[name], importance()
    seen = {"plain": (None, None), "importance": (squares, None), "means": (squares, mean_of(squares))}[given]
    rows = np.concatenate([gaussian(), 1000 * gaussian(), 1e-6 * gaussian(), np.zeros((1, WIDTH), np.float32)])
    assert ggml.accepts(codec, codec.encode(rows, *seen))
