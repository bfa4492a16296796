"""Which word follows: multiple choice over the evaluation text, a second opinion beside perplexity and divergence.

At places of the text where a word begins, the token that follows stands among three others that begin words elsewhere in the
same text, as often as they do there. No forward is run for it: the answers come from the logits that divergence is scored on.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checks.scoring import Questions, Scores
from quantkit.checks.verdict import Verdict, at_least, chunk_means, estimate, finite
from quantkit.values import CheckResult, Tokenizer

OPTIONS = 4
LETTERS = 3  # of a word's first token, at least
PER_CHUNK = 64  # questions, at most
_BEGINNINGS = ("Ġ", "▁")  # how vocabularies write the space before a word


def ask(tokens: NDArray[np.int32], tokenizer: Tokenizer, *, first: int, seed: int = 0) -> Questions | None:
    """Questions on tokens (chunks, length) after token `first` of each, the same for every artefact; None where the text has
    a chunk without any, as in a script that does not part words by spaces.
    """
    words = _words(tokens, tokenizer)
    scored = tokens[:, first + 1 :]
    places = [np.flatnonzero(np.isin(chunk, words)).tolist() for chunk in scored]
    count = min(PER_CHUNK, *map(len, places))
    pool = scored[np.isin(scored, words)].tolist()
    if count == 0 or len(set(pool)) < OPTIONS:
        return None
    dice = random.Random(seed)  # whose random() gives the same numbers in every release of Python
    positions = [sorted(sorted(found, key=lambda _: dice.random())[:count]) for found in places]
    options = [[_options(int(chunk[at]), pool, dice) for at in chosen] for chunk, chosen in zip(scored, positions, strict=True)]
    return Questions(np.array(positions, np.int64), np.array(options, np.int64))


def check(scores: Scores, *, min_ratio: float | None = None) -> CheckResult:
    """min_ratio: the artefact's share of right answers over the original's. The gate is on the paired difference of the one
    and min_ratio times the other. Without a limit: a report.
    """
    limits = {} if min_ratio is None else {"min_ratio": min_ratio}
    ours, theirs = scores.right_artefact, scores.right_reference
    if ours is None or theirs is None:
        verdict: Verdict = "report" if min_ratio is None else "unresolved"
        why = "no questions: a chunk of the text has no beginning of a word that is a token"
        return CheckResult("cloze", verdict, why, {}, limits, scores.engine)
    artefact, original = estimate(ours), estimate(theirs)
    difference = estimate(ours.astype(np.float64) - theirs)
    verdict, note = "report", ""
    if min_ratio is not None:
        verdict, note = at_least(estimate(ours - min_ratio * theirs), 0.0)
    values = {
        "accuracy": artefact.mean,
        "accuracy_error": artefact.error,
        "reference_accuracy": original.mean,
        "reference_accuracy_error": original.error,
        "difference": difference.mean,
        "difference_error": difference.error,
        "options": OPTIONS,
        "questions": ours.size,
        "chunks": artefact.chunks,
    }
    summary = (
        f"right {100 * artefact.mean:.1f} %, original {100 * original.mean:.1f} % of {ours.size} questions with {OPTIONS} "
        f"answers: difference {100 * difference.mean:+.2f} ± {100 * difference.error:.2f} %"
    )
    said = [summary + (f", limit min_ratio {min_ratio:g}" if min_ratio is not None else ""), *([note] if note else [])]
    means = chunk_means(right=ours, right_reference=theirs)
    return CheckResult("cloze", verdict, "; ".join(said), finite(values), limits, scores.engine, means)


def _words(tokens: NDArray[np.int32], tokenizer: Tokenizer) -> list[int]:
    """Those of the tokens that begin a word, with LETTERS letters of it."""
    from tokenizers import Tokenizer as Engine

    engine: Any = Engine.from_str(json.dumps(tokenizer.definition))
    found = []
    for token in np.unique(tokens).tolist():
        written = engine.id_to_token(token) or ""
        word = engine.decode([token]).strip() if written.startswith(_BEGINNINGS) else ""
        if word.isalpha() and len(word) >= LETTERS:
            found.append(token)
    return found


def _options(answer: int, pool: list[int], dice: random.Random) -> list[int]:
    """The answer, then others of the pool, all different."""
    chosen = [answer]
    while len(chosen) < OPTIONS:
        other = pool[int(dice.random() * len(pool))]
        if other not in chosen:
            chosen.append(other)
    return chosen
