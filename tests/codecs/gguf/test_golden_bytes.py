"""Blocks written by hand from the format's layout: what they decode to, and that values on the grid encode to them."""

import numpy as np

from quantkit.codecs.gguf import codecs


def block(*parts):
    return np.frombuffer(b"".join(bytes(part) for part in parts), np.uint8)[None].copy()


def half(value):
    return np.float16(value).tobytes()


def decoded(name, data):
    return codecs()[name].decode(data)[0]


def test_bf16_and_f16():
    rows = np.array([[1.0, -2.0, 1.00390625, 1.01171875]], np.float32)  # the last two lie between bfloat16s: ties to even
    bf16 = codecs()["BF16"].encode(rows, None)
    assert bf16.tobytes() == bytes.fromhex("803f 00c0 803f 823f")
    assert codecs()["F16"].encode(rows, None).tobytes() == bytes.fromhex("003c 00c0 043c 0c3c")


def test_q8_0():
    codes = np.arange(-127, 127, 8)  # 32 codes, the greatest magnitude 127: the scale is that of the block
    data = block(half(0.5), codes.astype(np.int8).tobytes())
    assert data[0, :4].tobytes() == bytes.fromhex("0038 8189")
    np.testing.assert_array_equal(decoded("Q8_0", data), 0.5 * codes)
    np.testing.assert_array_equal(codecs()["Q8_0"].encode((0.5 * codes)[None].astype(np.float32), None), data)


def test_q4_0():
    codes = np.r_[np.arange(16), np.arange(16)[::-1]]  # byte i: code i low, code 16 + i high
    data = block(half(0.25), [i | (15 - i) << 4 for i in range(16)])
    assert data[0, :4].tobytes() == bytes.fromhex("0034 f0e1")
    values = 0.25 * (codes - 8)
    np.testing.assert_array_equal(decoded("Q4_0", data), values)
    np.testing.assert_array_equal(codecs()["Q4_0"].encode(values[None].astype(np.float32), None), data)


def test_q4_1():
    codes = np.r_[np.arange(16), np.arange(16)[::-1]]
    data = block(half(0.25), half(-3), [i | (15 - i) << 4 for i in range(16)])
    values = 0.25 * codes - 3
    np.testing.assert_array_equal(decoded("Q4_1", data), values)
    np.testing.assert_array_equal(codecs()["Q4_1"].encode(values[None].astype(np.float32), None), data)


def test_q5_0_and_q5_1():
    codes = np.arange(32)  # fifth bits: none of the first sixteen, all of the others
    tail = bytes([0, 0, 255, 255, *(i | i << 4 for i in range(16))])
    symmetric = 0.5 * (codes - 16)
    data = block(half(0.5), tail)
    np.testing.assert_array_equal(decoded("Q5_0", data), symmetric)
    np.testing.assert_array_equal(codecs()["Q5_0"].encode(symmetric[None].astype(np.float32), None), data)
    data = block(half(0.5), half(7), tail)
    affine = 0.5 * codes + 7
    np.testing.assert_array_equal(decoded("Q5_1", data), affine)
    np.testing.assert_array_equal(codecs()["Q5_1"].encode(affine[None].astype(np.float32), None), data)


# scale codes 1, 2, 3, 63 and 60, 33, 17, 48; minimum codes 5, 6, 7, 62 and 61, 32, 16, 49
SCALES = np.array([1, 2, 3, 63, 60, 33, 17, 48])
MINIMA = np.array([5, 6, 7, 62, 61, 32, 16, 49])
PACKED = bytes(
    [
        *(1 | 3 << 6, 2 | 2 << 6, 3 | 1 << 6, 63 | 3 << 6),  # low scales; above them bits 4 and 5 of 60, 33, 17, 48
        *(5 | 3 << 6, 6 | 2 << 6, 7 | 1 << 6, 62 | 3 << 6),  # low minima; above them bits 4 and 5 of 61, 32, 16, 49
        *(12 | 13 << 4, 1 | 0 << 4, 1 | 0 << 4, 0 | 1 << 4),  # low nibbles of the upper four of each
    ]
)


def test_q4_k():
    quants = (np.arange(256) * 7 % 16).reshape(8, 32)
    nibbles = bytes(quants[2 * pair, i] | quants[2 * pair + 1, i] << 4 for pair in range(4) for i in range(32))
    data = block(half(0.5), half(0.25), PACKED, nibbles)
    expected = 0.5 * SCALES[:, None] * quants - 0.25 * MINIMA[:, None]
    np.testing.assert_array_equal(decoded("Q4_K", data), expected.reshape(256))
    again = codecs()["Q4_K"].encode(expected.reshape(1, 256).astype(np.float32), None)
    error = decoded("Q4_K", again) - expected.reshape(256)
    assert (error**2).sum() < 1e-3 * (expected**2).sum()


def test_q5_k():
    quants = (np.arange(256) * 11 % 32).reshape(8, 32)
    fifths = bytes(sum(int(quants[j, i] >> 4) << j for j in range(8)) for i in range(32))
    low = quants & 15
    nibbles = bytes(low[2 * pair, i] | low[2 * pair + 1, i] << 4 for pair in range(4) for i in range(32))
    data = block(half(0.5), half(0.25), PACKED, fifths, nibbles)
    expected = 0.5 * SCALES[:, None] * quants - 0.25 * MINIMA[:, None]
    np.testing.assert_array_equal(decoded("Q5_K", data), expected.reshape(256))


def test_q6_k():
    quants = (np.arange(256) * 13 % 64).reshape(2, 4, 32)
    scales = np.array([1, -2, 3, -4, 127, -128, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    low, high = quants & 15, quants >> 4
    nibbles = bytes(
        low[side, part, i] | low[side, part + 2, i] << 4 for side in range(2) for part in range(2) for i in range(32)
    )
    pairs = bytes(sum(int(high[side, part, i]) << 2 * part for part in range(4)) for side in range(2) for i in range(32))
    data = block(nibbles, pairs, scales.astype(np.int8).tobytes(), half(0.125))
    assert data.shape == (1, 210)
    expected = 0.125 * scales[:, None] * (quants.reshape(16, 16) - 32)
    np.testing.assert_array_equal(decoded("Q6_K", data), expected.reshape(256))


def test_k_types_store_a_simple_block_exactly():
    """Two magnitudes whose halves, scales and codes are all exact."""
    row = np.tile(np.float32([0.0, 1.0]), 128)[None]
    for name in ("Q4_K", "Q5_K", "Q6_K"):
        np.testing.assert_allclose(decoded(name, codecs()[name].encode(row, None)), row[0], atol=2e-4)


def test_q2_k():
    quants = (np.arange(256) * 7 % 4).reshape(2, 4, 32)
    scales, minima = np.arange(16), np.arange(16)[::-1]
    pairs = bytes(sum(int(quants[side, part, i]) << 2 * part for part in range(4)) for side in range(2) for i in range(32))
    data = block(bytes(s | m << 4 for s, m in zip(scales, minima, strict=True)), pairs, half(0.5), half(0.25))
    expected = 0.5 * scales[:, None] * quants.reshape(16, 16) - 0.25 * minima[:, None]
    np.testing.assert_array_equal(decoded("Q2_K", data), expected.reshape(256))


def test_q3_k():
    quants = (np.arange(256) * 5 % 8).reshape(2, 4, 32)
    scales = np.array([0, 1, 31, 32, 33, 63, 7, 12, 40, 41, 42, 43, 5, 6, 62, 61])
    thirds = bytes(sum(int(quants[part // 4, part % 4, i] >> 2) << part for part in range(8)) for i in range(32))
    pairs = bytes(sum(int(quants[side, part, i] & 3) << 2 * part for part in range(4)) for side in range(2) for i in range(32))
    low = bytes(scales[j] & 15 | (scales[j + 8] & 15) << 4 for j in range(8))
    high = bytes(sum(int(scales[j + 4 * k] >> 4) << 2 * k for k in range(4)) for j in range(4))
    data = block(thirds, pairs, low, high, half(0.5))
    assert data.shape == (1, 110)
    expected = 0.5 * (scales - 32)[:, None] * (quants.reshape(16, 16) - 4)
    np.testing.assert_array_equal(decoded("Q3_K", data), expected.reshape(256))


LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def test_iq4_nl():
    codes = np.r_[np.arange(16), np.arange(16)[::-1]]
    data = block(half(0.25), [i | (15 - i) << 4 for i in range(16)])
    np.testing.assert_array_equal(decoded("IQ4_NL", data), 0.25 * LEVELS[codes])
    np.testing.assert_array_equal(codecs()["IQ4_NL"].encode((0.25 * LEVELS[codes])[None].astype(np.float32), None), data)


def test_iq4_xs():
    codes = (np.arange(256) * 11 % 16).reshape(8, 32)
    scales = np.array([0, 63, 31, 33, 17, 48, 5, 62])
    high = sum(int(scale >> 4) << 2 * j for j, scale in enumerate(scales))
    low = bytes(scales[2 * j] & 15 | (scales[2 * j + 1] & 15) << 4 for j in range(4))
    nibbles = bytes(codes[j, i] | codes[j, 16 + i] << 4 for j in range(8) for i in range(16))
    data = block(half(0.125), high.to_bytes(2, "little"), low, nibbles)
    assert data.shape == (1, 136)
    np.testing.assert_array_equal(decoded("IQ4_XS", data), (0.125 * (scales - 32)[:, None] * LEVELS[codes]).reshape(256))


def test_mxfp4():
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0])
    codes = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 0]
    data = block([127 - 3], [code | code << 4 for code in codes])  # 2^-3
    np.testing.assert_array_equal(decoded("MXFP4", data), np.tile(values / 8, 2))
    np.testing.assert_array_equal(codecs()["MXFP4"].encode(np.tile(values / 8, 2)[None].astype(np.float32), None), data)


def test_ternary_types_keep_ternary_weights():
    digits = np.random.default_rng(5).integers(0, 3, 256)
    row = (0.75 * (digits - 1)).astype(np.float32)[None]
    pairs = digits.reshape(2, 4, 32)
    packed = bytes(sum(int(pairs[side, part, i]) << 2 * part for part in range(4)) for side in range(2) for i in range(32))
    np.testing.assert_array_equal(codecs()["TQ2_0"].encode(row, None), block(packed, half(0.75)))
    encoded = codecs()["TQ1_0"].encode(row, None)
    first = digits[[0, 32, 64, 96, 128]] @ 3 ** np.arange(5)[::-1]
    assert encoded[0, 0] == -(-int(first) * 256 // 243)
    np.testing.assert_array_equal(decoded("TQ1_0", encoded), row[0])
