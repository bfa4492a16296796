"""Whether a graph is the model: its logits against transformers' for texts of two lengths in one batch, prompt and decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.values import F32, CheckResult

Ids = NDArray[np.int64]
Answer = Callable[[Sequence[Ids]], Sequence[F32]]
"""answer(texts): logits (length, vocabulary) after each token of each text, the texts given as a batch."""

LIMIT = 1e-3  # of the logits' standard deviation; float32 graphs come to 1e-5
PROMPTS = (24, 17)
DECODE = 16


def texts(vocabulary: int) -> list[Ids]:
    """Tokens for the comparison: of each text the prompt and what is decoded after it."""
    dice = np.random.default_rng(0)
    return [dice.integers(0, vocabulary, length + DECODE) for length in PROMPTS]


def check(
    found: Sequence[F32], wanted: Sequence[F32], *, what: str, engine: str, prompts: Sequence[int] = PROMPTS
) -> CheckResult:
    """The greatest difference of any logit, relative to the logits' standard deviation. what: which graph, for the summary.
    prompts: how many tokens of each text came at once."""
    spread = float(np.concatenate([each.ravel() for each in wanted]).std()) or 1.0
    differences = [np.abs(ours - theirs).max(1) / spread for ours, theirs in zip(found, wanted, strict=True)]
    prompt = max(float(each[:length].max()) for each, length in zip(differences, prompts, strict=True))
    decode = max(float(each[length:].max()) for each, length in zip(differences, prompts, strict=True))
    worst = max(prompt, decode)
    good = bool(worst <= LIMIT)  # not a number is no parity
    said = f"{what}: logits within {prompt:.2g} (prompt) and {decode:.2g} (decode) of transformers', relative to their spread"
    values = {"prompt": prompt, "decode": decode}
    return CheckResult("parity", "pass" if good else "fail", said, values, {"max_difference": LIMIT}, engine)
