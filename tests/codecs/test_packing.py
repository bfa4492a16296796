"""Packed integers and 8-bit floats: golden bytes, round trips, torch as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.codecs import awq, compressed_tensors, fp8, gptq, words


def test_golden_words() -> None:
    codes = np.arange(32, dtype=np.uint8)[None]
    assert words.pack(codes[:, :8] % 16, 4).view("<u4").tolist() == [[0x76543210]]
    assert words.pack(codes[:, :16] % 4, 2).view("<u4").tolist() == [[0xE4E4E4E4]]
    assert words.pack(codes[:, :4] * 60, 8).view("<u4").tolist() == [[0xB4783C00]]
    # The stream of 32 codes 0..7 repeated, written as octal digits from the last: 76543210 four times, 96 bits.
    stream = int("76543210" * 4, 8)
    assert words.pack(codes % 8, 3).view("<u4").tolist() == [[stream >> 32 * n & 0xFFFFFFFF for n in range(3)]]


def test_golden_layouts() -> None:
    codes = (np.arange(64, dtype=np.uint8) % 16).reshape(8, 8)
    assert gptq.pack_codes(codes, 4).view("<u4").tolist() == [[0x76543210, 0xFEDCBA98] * 4]
    assert gptq.pack_zeros(np.full((8, 1), 8, np.uint8), 4, 1).view("<u4").tolist() == [[0x77777777]]
    assert gptq.pack_zeros(np.full((8, 1), 8, np.uint8), 4, 2).view("<u4").tolist() == [[0x88888888]]
    assert awq.pack(codes[:, :1].copy() + np.arange(8, dtype=np.uint8)[:, None] % 8).shape == (1, 1)
    assert awq.pack(np.arange(8, dtype=np.uint8)[:, None]).view("<u4").tolist() == [[0x75316420]]
    assert compressed_tensors.pack_codes(codes[:1], 4).view("<u4").tolist() == [[0x76543210]]
    assert compressed_tensors.pack_zeros(np.arange(8, dtype=np.uint8)[:, None], 4).view("<u4").tolist() == [[0x76543210]]


@given(st.sampled_from(gptq.BITS), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_what_is_packed_comes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (32 * rows, 32 * columns)).astype(np.uint8)
    assert np.array_equal(gptq.unpack_codes(gptq.pack_codes(codes, bits), bits), codes)
    assert np.array_equal(gptq.unpack_codes(gptq.pack_codes(codes, bits)[:, 3:9], bits), codes[3:9])
    for version, low in ((1, 1), (2, 0)):
        zeros = np.maximum(codes, low)
        assert np.array_equal(gptq.unpack_zeros(gptq.pack_zeros(zeros, bits, version), bits, version), zeros)
    if bits != 3:
        odd = codes[:, :-5]
        assert np.array_equal(
            compressed_tensors.unpack_codes(compressed_tensors.pack_codes(odd, bits), bits, odd.shape[1]), odd
        )
        assert np.array_equal(compressed_tensors.unpack_zeros(compressed_tensors.pack_zeros(odd, bits), bits, len(odd)), odd)
    nibbles = codes % 16
    assert np.array_equal(awq.unpack(awq.pack(nibbles)), nibbles)


def test_codes_that_fill_no_words_are_refused() -> None:
    with pytest.raises(ValueError, match="33 codes of 3 bits"):
        words.pack(np.zeros((1, 33), np.uint8), 3)


@pytest.mark.parametrize(("kind", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_floats_of_8_bits_are_torchs(kind: str, dtype: torch.dtype) -> None:
    raw = np.arange(256, dtype=np.uint8)
    assert np.array_equal(fp8.decode(raw, kind), torch.from_numpy(raw).view(dtype).float().numpy(), equal_nan=True)


def test_scales_are_spread() -> None:
    shape, grid = (5, 6), np.arange(6, dtype=np.float32).reshape(2, 3)
    blocks = np.array([[0, 0, 1, 1, 2, 2]] * 3 + [[3, 3, 4, 4, 5, 5]] * 2)
    assert np.array_equal(fp8.spread(grid, shape, (3, 2), 0, 5), blocks)
    assert np.array_equal(fp8.spread(grid, shape, (3, 2), 2, 4), blocks[2:4])
    rows = np.arange(5, dtype=np.float32)
    assert np.array_equal(fp8.spread(rows, shape, None, 1, 3), [[1] * 6, [2] * 6])
    assert np.array_equal(fp8.spread(np.float32([[1, 2, 3]] * 5), shape, None, 4, 5), [[1, 1, 2, 2, 3, 3]])
    assert fp8.spread(np.float32(7), shape, None, 0, 5).tolist() == [[7]]
    with pytest.raises(ValueError, match=r"scales \[2, 3\] belong to no matrix of \[5, 6\]"):
        fp8.spread(grid, shape, None, 0, 5)
