"""No codec may leave more error than ggml's own quantiser, on any kind of row, with and without importance.

With importance the measure is the importance, which is what an output's error grows with; ggml minimises importance * sqrt(a
mean of x^2 + x^2). Without it, the measure is the one that ggml's reference minimises for the type.
"""

import numpy as np
import pytest

from quantkit.codecs.gguf import codecs

WIDTH = 4096
ROWS = 8


def affine_k(x):
    """rms of the block of 32 + |x|"""
    blocks = x.reshape(len(x), -1, 32)
    mean = np.broadcast_to((blocks * blocks).mean(axis=2, keepdims=True), blocks.shape).reshape(x.shape)
    return np.sqrt(mean) + abs(x)


PLAIN = {
    "Q2_K": abs,
    "Q3_K": np.square,
    "Q4_K": affine_k,
    "Q5_K": affine_k,
    "Q6_K": np.square,
}


def kinds():
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((ROWS, WIDTH))
    outlier = 0.02 * normal
    outlier[np.arange(ROWS), rng.integers(0, WIDTH, ROWS)] = rng.choice([-1, 1], ROWS) * np.linspace(0.5, 20, ROWS)
    return {
        "gaussian": 0.02 * normal,
        "heavy-tailed": 0.02 * rng.standard_t(3, (ROWS, WIDTH)),
        "constant": np.tile(rng.uniform(-1, 1, (ROWS, 1)), WIDTH),
        "zero": np.zeros((ROWS, WIDTH)),
        "outlier": outlier,
        "denormal": 1e-40 * normal,
        "subnormal scales": np.geomspace(1e-7, 1e-2, ROWS)[:, None] * normal,
        "one-sided": 0.1 + abs(0.02 * normal),
        "sparse": np.where(rng.random((ROWS, WIDTH)) < 0.02, normal, 0),
        "mixed scales": np.repeat(np.exp(rng.normal(0, 0.5, (ROWS, WIDTH // 32))), 32, axis=1) * 0.01 * normal,
    }


KINDS = {name: rows.astype(np.float32) for name, rows in kinds().items()}
IMPORTANCE = np.random.default_rng(8).chisquare(1, WIDTH).astype(np.float32) + np.float32(0.01)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", codecs())
def test_error_is_at_most_ggmls(ggml, name, kind, weighted):
    codec = codecs()[name]
    rows = KINDS[kind]
    importance = IMPORTANCE if weighted else None
    ours, theirs = codec.encode(rows, importance), ggml.encode(codec, rows, importance)
    assert ggml.accepts(codec, ours)
    x = rows.astype(np.float64)
    weight = PLAIN.get(name, np.ones_like)(x) if importance is None else np.broadcast_to(importance, x.shape)
    error = (weight * (codec.decode(ours) - x) ** 2).sum(axis=1)
    bound = 1.005 * (weight * (codec.decode(theirs) - x) ** 2).sum(axis=1) + 1e-7 * (weight * x * x).sum(axis=1)
    assert np.isfinite(error).all()
    worst = int((error - bound).argmax())
    assert (error <= bound).all(), f"row {worst}: {error[worst]:.6g} against a bound of {bound[worst]:.6g}"
