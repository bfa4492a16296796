"""When a measured mean passes its limit, and when the text was too short to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Verdict = Literal["pass", "fail", "report", "unresolved"]

CONFIDENCE = 0.95  # one-sided


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tokens with its standard error clustered by chunk; infinite with one chunk."""

    mean: float
    error: float
    chunks: int

    @property
    def margin(self) -> float:
        """What the true mean lies within on one side, at 95 % confidence (Student's t with chunks - 1)."""
        return float(stdtrit(self.chunks - 1, CONFIDENCE)) * self.error if self.chunks > 1 else math.inf

    @property
    def either_side(self) -> float:
        """What the true mean lies within on both sides, at the same confidence."""
        return float(stdtrit(self.chunks - 1, (1 + CONFIDENCE) / 2)) * self.error if self.chunks > 1 else math.inf


def estimate(values: NDArray[np.float64] | NDArray[np.bool_]) -> Estimate:
    """Of values (chunks, tokens). Tokens of one chunk share their context and are not independent: the error is the
    cluster-robust one (CR1), which for clusters of equal size is that of the mean of the chunks' means.
    """
    means = values.mean(1, dtype=np.float64)
    error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    return Estimate(float(means.mean()), error, len(means))


def at_most(found: Estimate, limit: float) -> tuple[Verdict, str]:
    """Pass where even the upper bound is within the limit, fail where even the lower one is not; else unresolved,
    with about how many chunks would settle it (the error shrinks with the square root of their number).
    """
    if math.isnan(found.mean):
        return "fail", "not a number"
    if found.mean + found.margin <= limit:
        return "pass", ""
    if found.mean - found.margin > limit:
        return "fail", ""
    if found.chunks < 2:
        return "unresolved", "one chunk gives no error: score at least two"
    if found.mean == limit:
        return "unresolved", "the value is the limit itself"
    needed = math.ceil(found.chunks * (found.margin / (limit - found.mean)) ** 2)
    return "unresolved", f"{found.chunks} chunks cannot tell it from the limit, about {needed} would"


def at_least(found: Estimate, limit: float) -> tuple[Verdict, str]:
    return at_most(Estimate(-found.mean, found.error, found.chunks), -limit)


def chunk_means(**measures: NDArray[np.float64] | NDArray[np.bool_]) -> dict[str, tuple[float, ...]]:
    """The mean of every chunk of values (chunks, tokens), by the measure's name; without measures that are not finite."""
    means = {name: values.mean(1, dtype=np.float64) for name, values in measures.items()}
    return {name: tuple(found.tolist()) for name, found in means.items() if np.isfinite(found).all()}


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several gates; without any, a report."""
    order: tuple[Verdict, ...] = ("fail", "unresolved", "pass")
    return min(verdicts, key=order.index, default="report")


def finite(values: Mapping[str, float | int | str]) -> dict[str, float | int | str]:
    """Without what JSON cannot hold: the error of one chunk, the perplexity of a broken file."""
    return {name: value for name, value in values.items() if isinstance(value, str) or math.isfinite(value)}
