"""Which input columns matter: E[x^2] and E[x] of what every matrix meets on a text; llama.cpp's importance matrix (imatrix)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit import modules, walk
from quantkit.calibration.corpus import Sequences
from quantkit.values import F32, Importance, Progress, Weights, stacked


def measure(
    config: Mapping[str, Any], weights: Weights, given: Sequences, *, threads: int, progress: Progress
) -> dict[str, Importance]:
    """HF weight name -> what its input columns held, over the sequences that it is given.

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

    walk.walk(
        config,
        weights,
        given.tokens,
        decoder_sequences=given.decoder_tokens,
        threads=threads,
        observe=observe,
        progress=advance,
    )
    seen = {name: _mean(both, rows[name]) for name, both in sums.items()}
    return _by_stored_name(seen, modules.view(config, weights))


def _mean(sums: NDArray[np.float64], rows: int) -> Importance:
    squares, means = (sums / rows).astype(np.float32)
    return Importance(squares, means, np.array([rows], np.int64))


def _by_stored_name(seen: Mapping[str, Importance], model: modules.ModuleWeights) -> dict[str, Importance]:
    """From the model's names to the checkpoint's; what an expert of a fused tensor saw goes to each of its stored matrices,
    or, where the checkpoint is fused too, into a stack."""
    found = {model.moved.get(name, name): value for name, value in seen.items() if not name.endswith("]")}
    for fused in dict.fromkeys(name.rpartition("[")[0] for name in seen if name.endswith("]")):
        experts = _with_unseen([seen.get(f"{fused}[{expert}]") for expert in range(model.infos[fused].shape[0])])
        if fused not in model.experts:
            found[fused] = stacked(experts)
            continue
        for parts, value in zip(model.experts[fused], experts, strict=True):
            found |= dict.fromkeys(parts, value)
    return found


def _with_unseen(experts: Sequence[Importance | None]) -> list[Importance]:
    """An expert that no token reached is weighed by what the others of its layer saw on average, and counts 0 rows.

    llama.cpp gives it importance 1 in every column, which ignores that the columns of a layer differ for all experts alike.
    """
    known = [value for value in experts if value is not None]
    both = stacked(known)
    assert both.means is not None
    others = Importance(both.squares.mean(0, dtype=np.float32), both.means.mean(0, dtype=np.float32), np.zeros(1, np.int64))
    return [others if value is None else value for value in experts]
