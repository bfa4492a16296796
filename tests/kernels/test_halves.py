"""Against numpy's own half precision, over every half and the midpoints between."""

import numpy as np

from quantkit.kernels.halves import covering_half, from_half, near_half, to_half
from quantkit.kernels.jit import kernel


@kernel
def to_halves(values, out):
    for i in range(values.size):
        out[i] = to_half(values[i])


@kernel
def from_halves(bits, out):
    for i in range(bits.size):
        out[i] = from_half(np.int32(bits[i]))


def finite_halves():
    bits = np.arange(65536, dtype=np.uint16)
    return bits[np.isfinite(bits.view(np.float16))]


def test_every_half_and_back():
    bits = finite_halves()
    values = np.empty(bits.size, np.float32)
    from_halves(bits, values)
    np.testing.assert_array_equal(values, bits.view(np.float16).astype(np.float32))
    back = np.empty(bits.size, np.uint16)
    to_halves(values, back)
    assert (back == bits)[values != 0].all()
    assert (back[values == 0] & 0x7FFF == 0).all()


def test_ties_go_to_even_and_neighbours_to_the_nearest():
    values = np.sort(finite_halves()[:0x7C00].view(np.float16).astype(np.float32))
    middles = (values[:-1] + values[1:]) / 2
    cases = np.concatenate([middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e9))])
    cases = np.concatenate([cases, -cases]).astype(np.float32)
    ours = np.empty(cases.size, np.uint16)
    to_halves(cases, ours)
    theirs = cases.astype(np.float16).view(np.uint16)
    positive = cases != 0
    np.testing.assert_array_equal(ours[positive], theirs[positive])


def test_saturates():
    largest = np.float32(65504)
    for value in (65519.0, 65520.0, 1e9, np.finfo(np.float32).max):
        assert from_half(to_half(np.float32(value))) == largest
        assert from_half(to_half(np.float32(-value))) == -largest


def test_covering_half_steps_up_only_where_needed():
    step = np.float32(2**-24)
    assert from_half(covering_half(np.float32(1.2) * step, np.float32(8.5), np.float32(9.6) * step)) == 2 * step
    assert from_half(covering_half(np.float32(-1.2) * step, np.float32(8.5), np.float32(9.6) * step)) == -2 * step
    assert from_half(covering_half(np.float32(1.2) * step, np.float32(8.5), np.float32(8) * step)) == step
    assert covering_half(np.float32(0), np.float32(8.5), np.float32(1)) == 0


def test_near_half_keeps_eleven_bits():
    value = np.float32(1 + 1 / 1024 + 1 / 4096)
    assert near_half(value) == np.float32(1 + 1 / 1024)
    assert near_half(np.float32(-3)) == np.float32(-3)
