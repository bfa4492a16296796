"""Scales and codes chosen by GPTQ's engine in every type that can hold them: ggml's own validation passes,
gguf-py reads what we read, and bytes are the same on one and two threads and once more, whatever inputs and weights are like.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quantkit.codecs import codes, sequential
from quantkit.codecs.gguf import codecs
from quantkit.kernels import hessian
from quantkit.values import F32, U8

WIDTH, ROWS, TOKENS = 512, 264, 600  # two panels of the factor, two slabs of rows
QUICK = ("random", "columns of 1e-6 and 1e6")
SLOW = ("rank 1", "dead columns", "all of 1e-6", "nearly singular", "one token")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(kind: str) -> list[F32]:
    """Two micro-batches of activations."""
    dice = np.random.default_rng(len(kind))
    x = dice.standard_normal((TOKENS, WIDTH))
    if kind == "rank 1":
        x = dice.standard_normal((TOKENS, 1)) @ dice.standard_normal((1, WIDTH))
    if kind == "dead columns":
        x[:, dice.permutation(WIDTH)[:200]] = 0
        x[:, 32:64] = 0  # a whole group
    if kind == "columns of 1e-6 and 1e6":
        x *= dice.choice([1e-6, 1.0, 1e6], WIDTH)
    if kind.startswith("all of"):
        x *= float(kind.split()[-1])
    if kind == "nearly singular":
        x = x[:, dice.integers(0, 40, WIDTH)] + 1e-6 * x
    if kind == "one token":
        x = x[:1].repeat(2, axis=0)
    return [np.ascontiguousarray(part, np.float32) for part in np.array_split(x, 2)]


def weights() -> F32:
    """Rows of every kind: normal, with outliers, zero, zero in parts, constant in blocks, of one sign, tiny, large, a ramp."""
    dice = np.random.default_rng(5)
    rows = dice.standard_normal((ROWS, WIDTH)).astype(np.float32) * np.float32(0.05)
    rows[1, ::97] *= 400
    rows[2] = 0
    rows[3, 32:320] = 0
    rows[4] = np.repeat(rows[4, ::32], 32)
    rows[5] = np.abs(rows[5])
    rows[6] = -np.abs(rows[6])
    rows[7] *= np.float32(1e-6)
    rows[8] *= np.float32(2e4)
    rows[9] = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    rows[10] = 0
    rows[10, 100] = 3
    rows[11] = np.float32(0.25)
    rows[260, :256] *= np.float32(1e-8)  # in the second slab
    return rows


def chosen(kind: str, batches: list[F32], threads: int) -> tuple[U8, U8, float, hessian.Factor]:
    """As solving does it: the search's bytes, those that are chosen against H, the error that the engine counts, H's factor."""
    rows = weights()
    with ThreadPoolExecutor(threads) as pool:
        factor = hessian.factor(batches, 0.01, pool, blocks=sequential.BLOCKS)
        searched = codecs()[kind].encode(rows, factor.diagonal / np.float32(sum(map(len, batches))))
        found, loss = sequential.solve(kind, rows, searched, factor, pool)
    return searched, found, loss, factor


@pytest.mark.parametrize("given", [*QUICK, *(pytest.param(given, marks=pytest.mark.slow) for given in SLOW)])
@pytest.mark.parametrize("kind", codes.types())
def test_every_engine_reads_them_and_threads_do_not_matter(kind: str, given: str, ggml: Any) -> None:
    codec, batches = codecs()[kind], inputs(given)
    searched, data, loss, factor = chosen(kind, batches, 1)
    for each in (searched, data):
        assert ggml.accepts(codec, each)
        ours = codec.decode(each)
        assert np.isfinite(ours).all()
        theirs = gguf.quants.dequantize(each, gguf.GGMLQuantizationType[kind])
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=0)
    lower, rows = factor.lower().astype(np.float64), weights().astype(np.float64)
    errors = [float(np.square((rows - codec.decode(each))[:, factor.order] @ lower).sum()) for each in (data, searched)]
    assert loss == pytest.approx(errors[0], rel=1e-3)
    assert errors[0] <= errors[1] * 1.01
    for threads in (1, 2):
        again = chosen(kind, batches, threads)
        assert [part.tobytes() for part in again[:2]] == [searched.tobytes(), data.tobytes()]
        assert again[2] == loss
        assert again[3].lower().tobytes() == factor.lower().tobytes()
