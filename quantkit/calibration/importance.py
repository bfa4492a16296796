"""Which input columns matter: E[x^2] and E[x] of what every matrix meets on a text; llama.cpp's importance matrix (imatrix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit import walk
from quantkit.values import F32, Importance, Progress, Weights


def measure(
    config: Mapping[str, Any], weights: Weights, sequences: NDArray[np.int32], *, threads: int, progress: Progress
) -> dict[str, Importance]:
    """HF weight name -> what its input columns held, over token `sequences` (n, length).

    The sums decide codes: like the walk's own, they are the same whatever the number of threads.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, int] = {}

    def observe(name: str, inputs: F32) -> None:
        both = np.stack([np.square(inputs).sum(0, dtype=np.float64), inputs.sum(0, dtype=np.float64)])
        sums[name] = sums.get(name, 0.0) + both
        rows[name] = rows.get(name, 0) + len(inputs)

    def advance(_: str, done: float, total: float) -> None:
        progress("calibrate", done, total)

    walk.walk(config, weights, sequences, threads=threads, observe=observe, progress=advance)
    found = {}
    for name, both in sums.items():
        squares, means = (both / rows[name]).astype(np.float32)
        found[name] = Importance(squares, means, np.array([rows[name]], np.int64))
    return found
