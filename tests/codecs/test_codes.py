"""Codes put into a GGUF type's bytes are what its decoder, and gguf-py's, find there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch

from quantkit.codecs import codes
from quantkit.codecs.gguf import codecs
from quantkit.kernels import gptq, hessian


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
@pytest.mark.parametrize("spread", ["plain", "rank-deficient", "badly scaled"])
def test_codes_chosen_by_the_inputs_err_less(kind: str, spread: str) -> None:
    dice = np.random.default_rng(2)
    x = dice.standard_normal((900, 256))
    if spread == "rank-deficient":
        x = dice.standard_normal((900, 60)) @ dice.standard_normal((60, 256))
    if spread == "badly scaled":
        x = x * np.geomspace(1e-2, 1e2, 256)
    inputs = [np.ascontiguousarray(part, np.float32) for part in np.split(x @ dice.standard_normal((256, 256)), 3)]
    rows = dice.standard_normal((32, 256)).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(2) as pool:
        factor = hessian.factor(inputs, 0.01, pool)
        data = codecs()[kind].encode(rows, factor.diagonal)
        grid = codes.lattice(kind, data)
        chosen, _ = gptq.choose(rows, grid.steps, grid.offsets, grid.group, grid.levels, factor, pool)
        found = codes.with_codes(kind, data, chosen)
        errors = [hessian.outputs(rows - codecs()[kind].decode(each), inputs, pool) for each in (found, data)]
    torch.set_num_threads(before)
    assert np.isfinite(codecs()[kind].decode(found)).all()
    assert errors[0] < errors[1]
