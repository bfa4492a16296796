"""Which input columns matter: E[x^2] of what every matrix meets on a text; llama.cpp's importance matrix (imatrix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit import walk
from quantkit.values import F32, Progress, Weights


def measure(
    config: Mapping[str, Any], weights: Weights, sequences: NDArray[np.int32], *, threads: int, progress: Progress
) -> dict[str, F32]:
    """HF weight name -> mean square of each input column, float32 (width,), over token `sequences` (n, length).

    The sums decide codes: like the walk's own, they are the same whatever the number of threads.
    """
    squares: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, int] = {}

    def observe(name: str, inputs: F32) -> None:
        squares[name] = squares.get(name, 0.0) + np.square(inputs).sum(0, dtype=np.float64)
        rows[name] = rows.get(name, 0) + len(inputs)

    def advance(_: str, done: float, total: float) -> None:
        progress("calibrate", done, total)

    walk.walk(config, weights, sequences, threads=threads, observe=observe, progress=advance)
    return {name: (squares[name] / rows[name]).astype(np.float32) for name in squares}
