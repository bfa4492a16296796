"""An artefact beside its reference, token by token: what perplexity and divergence are computed from.

The convention is llama-perplexity's: each chunk is one forward from an empty cache; with a chunk of 512 tokens, the
logits after tokens 256 to 510 are scored on the tokens 257 to 511 that follow them (llama.cpp, tools/perplexity).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import WeightError
from quantkit.values import F32, Progress

F64 = NDArray[np.float64]

_ROWS = 32  # compared at once: bounds temporaries to a few of (32, vocabulary) float32
_ROUNDING = 1e-5  # nats; a KL divergence below zero by no more than this is float32 rounding


@dataclass(frozen=True, slots=True)
class Questions:
    """Multiple choice, as many in every chunk: which of some tokens follows. The first is the one that does."""

    positions: NDArray[np.int64]  # (chunks, questions), among the scored ones
    options: NDArray[np.int64]  # (chunks, questions, tokens to choose from)


@dataclass(frozen=True, slots=True)
class Scores:
    """Per scored token, (chunks, scored); nats. A position where the artefact's logits are not finite holds NaN."""

    nll_reference: F64
    nll_artefact: F64
    kld: F64  # of the artefact's distribution from the reference's, >= 0
    same_top: NDArray[np.bool_]  # the same token is most likely in both
    engine: str
    right_reference: NDArray[np.bool_] | None = None  # (chunks, questions): that follows which the reference prefers
    right_artefact: NDArray[np.bool_] | None = None


def score(
    logits: Callable[[int], F32],
    tokens: NDArray[np.int32],
    reference_hidden: F32,
    head: Callable[[F32], F32],
    *,
    first: int,
    engine: str,
    questions: Questions | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores of an artefact in `engine` on `tokens` (chunks, length), of the logits after token `first` to the last but one,
    and both models' answers to `questions`.

    logits: the artefact's for a chunk by its number, (length, vocabulary).
    reference_hidden: (chunks, length, width), the original model's final hidden states; head: their map to logits.
    Raises WeightError where artefact and reference have vocabularies of different sizes.
    """
    scored = slice(first, tokens.shape[1] - 1)
    parts, right = [], []

    def compare_chunk(index: int) -> None:
        """Whose logits are gone before those of the next are made."""
        artefact = logits(index)[scored]
        original = head(reference_hidden[index, scored])
        parts.append(compare(original, artefact, tokens[index, 1:][scored]))
        if questions is not None:
            asked = questions.positions[index], questions.options[index]
            right.append((_answer(original, *asked), _answer(artefact, *asked)))

    for index in range(len(tokens)):
        compare_chunk(index)
        if progress is not None:
            progress("score", index + 1, len(tokens))
    reference, found, kld, top = (np.stack(rows) for rows in zip(*parts, strict=True))
    if not right:
        return Scores(reference, found, kld, top, engine)
    theirs, ours = (np.stack(rows) for rows in zip(*right, strict=True))
    return Scores(reference, found, kld, top, engine, theirs, ours)


def _answer(logits: F32, positions: NDArray[np.int64], options: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the first option is the likeliest; a tie is not, nor is what is not finite."""
    chosen = logits[positions[:, None], options]
    return np.asarray(chosen[:, 0] > chosen[:, 1:].max(1))


def compare(reference: F32, artefact: F32, targets: NDArray[np.int32]) -> tuple[F64, F64, F64, NDArray[np.bool_]]:
    """Both losses, KL divergence and equal top of two logit arrays (t, vocabulary) and the tokens (t,) that came."""
    if reference.shape != artefact.shape:
        raise WeightError(f"logits are {artefact.shape} of the artefact, {reference.shape} of the original: not one model")
    parts = [slice(start, start + _ROWS) for start in range(0, len(targets), _ROWS)]
    blocks = [_compare(reference[part], artefact[part], targets[part]) for part in parts]
    one, two, kld, top = (np.concatenate(rows) for rows in zip(*blocks, strict=True))
    return one, two, kld, top


def _compare(reference: F32, artefact: F32, targets: NDArray[np.int32]) -> tuple[F64, F64, F64, NDArray[np.bool_]]:
    rows = np.arange(len(targets))
    broken = ~np.isfinite(artefact).all(1)
    with np.errstate(invalid="ignore"):
        p, weight, log_p = _shifted(reference)
        q, _, log_q = _shifted(artefact)
        log_q[broken] = np.nan  # and with it both of the artefact's scores
        total = weight.sum(1, dtype=np.float64)
        kld = (weight * (p - q)).sum(1, dtype=np.float64) / total - log_p + log_q
        kld[(kld < 0) & (kld > -_ROUNDING)] = 0.0
    same = reference.argmax(1) == artefact.argmax(1)
    return log_p - p[rows, targets], log_q - q[rows, targets], kld, same


def _shifted(logits: F32) -> tuple[F32, F32, F64]:
    """Logits less their greatest, those exponentiated, and the log of their sum; sums are in float64."""
    shifted = logits - logits.max(1, keepdims=True)
    weight = np.exp(shifted)
    return shifted, weight, np.log(weight.sum(1, dtype=np.float64))
