"""Placements: GGUF's row orders against llama.cpp's formulas, names and shapes of every architecture."""

import numpy as np
import pytest
from checkpoints import PICO

from quantkit import arch, source
from quantkit.codecs import gguf_tensors


def test_permute_is_llama_cpps() -> None:
    rows = np.arange(48 * 3).reshape(48, 3)
    theirs = rows.reshape(4, 2, 48 // 4 // 2, 3).swapaxes(1, 2).reshape(rows.shape)
    assert np.array_equal(gguf_tensors.permute(rows, 4), theirs)


def test_ungroup_is_llama_cpps() -> None:
    heads, kv_heads, width = 6, 2, 5
    rows = np.random.default_rng(0).integers(0, 99, ((heads + 2 * kv_heads) * width, 3))
    split = rows.reshape(kv_heads, heads // kv_heads + 2, width, 3)
    q, k, v = split[:, :-2].reshape(-1, 3), split[:, [-2]].reshape(-1, 3), split[:, [-1]].reshape(-1, 3)
    assert np.array_equal(gguf_tensors.ungroup(rows, heads, kv_heads), np.concatenate([q, k, v]))


@pytest.mark.parametrize("name", PICO)
def test_every_tensor_is_placed_once(name: str, pico) -> None:
    found = source.describe(str(pico(name)))
    architecture = arch.find(found.config)
    placed = gguf_tensors.placements(architecture, found.config, found.weights.infos)
    pieces = [piece for placement in placed.values() for piece in placement.pieces]
    assert len(set(pieces)) == len(pieces)
    assert {piece.name for piece in pieces} == set(found.weights.infos)
    for placement in placed.values():
        whole = gguf_tensors.read_ordered(found.weights, placement, 0, placement.rows)
        assert whole.size == np.prod(placement.shape)
        if placement.rows > 1:
            part = gguf_tensors.read_ordered(found.weights, placement, 1, min(11, placement.rows))
            assert np.array_equal(part, whole[1:11])
            assert np.array_equal(gguf_tensors.read_ordered(found.weights, placement, 1, 2), whole[1:2])
