"""Types for an exact size: one for each tensor, so that the measured error is least and the file no larger than asked.

Every candidate type of a tensor is encoded on a sample of its rows; the error is that of the matrix's output relative to the
output. The choice minimises the weighted sum by a Lagrange multiplier on the bytes, and then spends what is left greedily.
Source of the scheme: llama.cpp pull request 15550; of the weights: how much one tensor alone moves the divergence of SmolLM2
(benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.codecs.gguf import codecs
from quantkit.values import F32, Importance

WIDE = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # for rows of whole super-blocks
NARROW = ("IQ4_NL", "Q5_0", "Q5_1", "Q8_0")
SAMPLE_WEIGHTS = 1 << 17  # of a tensor, in rows evenly spread
HEAD_WEIGHT, EMBEDDING_WEIGHT = 64.0, 4.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A type that a tensor may have: what it takes and what it costs."""

    type: str
    nbytes: int
    error: float


def ladder(width: int) -> tuple[str, ...]:
    """The types to choose from for rows of this width; none where no block fits."""
    return WIDE if width % 256 == 0 else NARROW if width % 32 == 0 else ()


def weight(name: str, tied: bool) -> float:
    """How much a tensor's relative error counts beside another's."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return HEAD_WEIGHT
    return EMBEDDING_WEIGHT if name == "token_embd.weight" else 1.0


def sample(rows: int, width: int) -> list[int]:
    """Indices of the rows that are measured: evenly spread, the same on every run."""
    count = min(rows, max(1, SAMPLE_WEIGHTS // width))
    return [int(row) for row in np.linspace(0, rows - 1, count)]


def relative_error(rows: F32, importance: Importance | None, kind: str) -> float:
    """Energy of the output's error over that of the output, for rows (n, width) as `kind` with this importance.

    With H = diag(E[x^2] - E[x]^2) + E[x] E[x]^T; without importance, the squared error over the squares.
    """
    squares, means = (importance.squares, importance.means) if importance else (None, None)
    codec = codecs()[kind]
    miss = (rows - codec.decode(codec.encode(rows, squares, means))).astype(np.float64)

    def energy(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        if squares is None:
            return float((x * x).sum())
        if means is None:
            return float((squares * x * x).sum())
        spread = np.maximum(squares - means.astype(np.float64) ** 2, 0)
        return float((spread * x * x).sum() + np.square(x @ means).sum())

    whole = energy(rows.astype(np.float64))
    return energy(miss) / whole if whole else 0.0


def allocate(candidates: Mapping[str, Sequence[Candidate]], budget: int) -> dict[str, Candidate] | None:
    """One candidate for every tensor: the least sum of errors whose bytes are within `budget`; None where even the smallest
    are too many."""
    smallest = {name: min(given, key=lambda one: (one.nbytes, one.error)) for name, given in candidates.items()}
    if _bytes(smallest.values()) > budget:
        return None
    high = 1.0
    while _bytes(_priced(candidates, high).values()) > budget and high < 1e30:
        high *= 16
    low, chosen = 0.0, _priced(candidates, high)
    if _bytes(chosen.values()) > budget:
        chosen = smallest
    for _ in range(100):
        price = (low + high) / 2
        found = _priced(candidates, price)
        if _bytes(found.values()) <= budget:
            high, chosen = price, found
        else:
            low = price
    return _spent(candidates, chosen, budget)


def _priced(candidates: Mapping[str, Sequence[Candidate]], price: float) -> dict[str, Candidate]:
    """For every tensor the candidate of least error + price * bytes."""
    return {
        name: min(given, key=lambda one: (one.error + price * one.nbytes, one.nbytes)) for name, given in candidates.items()
    }


def _spent(candidates: Mapping[str, Sequence[Candidate]], chosen: dict[str, Candidate], budget: int) -> dict[str, Candidate]:
    """The choice with the room that is left spent, most error per byte first."""
    chosen, room = dict(chosen), budget - _bytes(chosen.values())
    while True:
        steps = [
            ((have.error - one.error) / (one.nbytes - have.nbytes), name, one)
            for name, have in chosen.items()
            for one in candidates[name]
            if 0 < one.nbytes - have.nbytes <= room and one.error < have.error
        ]
        if not steps:
            return chosen
        _, name, one = max(steps, key=lambda step: (step[0], step[1]))
        room -= one.nbytes - chosen[name].nbytes
        chosen[name] = one


def _bytes(chosen: Iterable[Candidate]) -> int:
    return sum(one.nbytes for one in chosen)
