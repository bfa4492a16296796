"""Codes put into a GGUF type's bytes are what its decoder, and gguf-py's, find there."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from quantkit.codecs import codes
from quantkit.codecs.gguf import codecs


@pytest.mark.parametrize("kind", codes.types())
def test_codes_come_out_as_they_went_in(kind: str) -> None:
    dice = np.random.default_rng(0)
    rows = dice.standard_normal((6, 512)).astype(np.float32)
    rows[2] = 0
    data = codecs()[kind].encode(rows, None)
    grid = codes.lattice(kind, data)
    offsets, steps = (np.repeat(part, grid.group, 1) for part in (grid.offsets, grid.steps))
    chosen = dice.integers(0, len(grid.levels), rows.shape, dtype=np.uint8)
    found = codes.with_codes(kind, data, chosen)
    np.testing.assert_allclose(codecs()[kind].decode(found), offsets + steps * grid.levels[chosen], rtol=1e-5, atol=1e-6)
    theirs = gguf.quants.dequantize(found, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(theirs, codecs()[kind].decode(found), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", codes.types())
def test_the_search_s_own_codes_are_nearest_on_its_lattice(kind: str) -> None:
    rows = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    data = codecs()[kind].encode(rows, None)
    grid = codes.lattice(kind, data)
    offsets, steps = (np.repeat(part, grid.group, 1) for part in (grid.offsets, grid.steps))
    places = (rows - offsets) / np.where(steps == 0, 1, steps)
    nearest = np.abs(places[..., None] - grid.levels).argmin(-1).astype(np.uint8)
    ours = codecs()[kind].decode(codes.with_codes(kind, data, nearest))
    assert np.linalg.norm(rows - ours) <= np.linalg.norm(rows - codecs()[kind].decode(data)) * (1 + 1e-6)


@pytest.mark.parametrize("kind", codes.types())
def test_super_scales_are_fitted_to_the_codes(kind: str) -> None:
    """Blocks whose halves were drawn wrong by some per cent come back to where they were, under any metric."""
    dice = np.random.default_rng(3)
    codec = codecs()[kind]
    aims = codec.decode(codec.encode(dice.standard_normal((8, codec.block)).astype(np.float32), None))
    data = codec.encode(aims, None)
    for at in codes._LAYOUTS[kind].scales:
        halves = np.ascontiguousarray(data[2:, at : at + 2]).view(np.float16)
        data[2:, at : at + 2] = (halves * np.float16(1.07)).view(np.uint8)
    root = np.tril(dice.standard_normal((codec.block, codec.block))).astype(np.float32)
    found = codes.refit(kind, data, aims, root)
    before, after = (np.square((aims - codec.decode(each)) @ root).sum(1) for each in (data, found))
    assert (after <= before).all()
    assert (after[2:] < 1e-4 * before[2:]).all()
    theirs = gguf.quants.dequantize(found, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(theirs, codec.decode(found), rtol=1e-6, atol=1e-7)
