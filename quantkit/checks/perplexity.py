"""Perplexity of an artefact against its original, on the same tokens."""

from __future__ import annotations

import math

import numpy as np

from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import Verdict, at_most, chunk_means, estimate, finite
from quantkit.values import CheckResult


def check(scores: Scores, *, max_ratio: float | None = None) -> CheckResult:
    """The gate is on exp of the mean difference of the two losses: paired, its error is far below either perplexity's.

    Errors of perplexities and ratio are those of the mean log, by the delta method. Without a limit: a report.
    """
    ratio = estimate(scores.nll_artefact - scores.nll_reference)
    reference, artefact = estimate(scores.nll_reference), estimate(scores.nll_artefact)
    verdict: Verdict = "report"
    note = ""
    if max_ratio is not None:
        verdict, note = at_most(ratio, math.log(max_ratio))
    broken = int(np.isnan(scores.nll_artefact).sum())
    if broken:
        verdict, note = "fail", f"the logits of {broken} of {scores.nll_artefact.size} positions are not finite"
    with np.errstate(over="ignore", invalid="ignore"):
        ppl, original, times = (float(np.exp(each.mean)) for each in (artefact, reference, ratio))
        values = finite(
            {
                "perplexity": ppl,
                "perplexity_error": ppl * artefact.error,
                "reference_perplexity": original,
                "reference_perplexity_error": original * reference.error,
                "ratio": times,
                "ratio_error": times * ratio.error,
                "ratio_upper": float(np.exp(ratio.mean + ratio.margin)),
                "chunks": ratio.chunks,
                "tokens": scores.nll_artefact.size,
                "non_finite": broken,
            }
        )
    limit = f", limit {max_ratio:g}" if max_ratio is not None else ""
    summary = f"perplexity {ppl:.4f}, original {original:.4f}: ratio {times:.4f} ± {times * ratio.error:.4f}{limit}"
    return CheckResult(
        check="perplexity",
        verdict=verdict,
        summary=f"{summary}; {note}" if note else summary,
        values=values,
        limits={"max_ratio": max_ratio} if max_ratio is not None else {},
        engine=scores.engine,
        chunk_means=chunk_means(nll=scores.nll_artefact, nll_reference=scores.nll_reference),
    )
