"""KL divergence of an artefact's next-token distribution from its original's, and how often both prefer one token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import Verdict, at_least, at_most, chunk_means, estimate, finite, worst
from quantkit.values import CheckResult

_PERCENTILES = {"kld_p99_9": 99.9, "kld_p99": 99.0, "kld_p95": 95.0, "kld_p90": 90.0, "kld_median": 50.0}


def check_second(scores: Scores) -> CheckResult:
    """A report on another text: what it says of text unlike the calibration's."""
    found = check(scores)
    return replace(found, check="divergence-second", summary=f"another text: {found.summary}")


def check(scores: Scores, *, max_mean: float | None = None, min_same_top: float | None = None) -> CheckResult:
    """max_mean: nats per token. min_same_top: a share in 0..1. Without limits: a report."""
    kld, top = estimate(scores.kld), estimate(scores.same_top)
    gates: list[tuple[Verdict, str]] = []
    if max_mean is not None:
        gates.append(at_most(kld, max_mean))
    if min_same_top is not None:
        gates.append(at_least(top, min_same_top))
    broken = int(np.isnan(scores.kld).sum())
    if broken:
        gates.append(("fail", f"{broken} of {scores.kld.size} positions are not finite"))
    percentiles = dict(zip(_PERCENTILES, np.percentile(scores.kld, list(_PERCENTILES.values())).tolist(), strict=True))
    values = {
        "mean_kld": kld.mean,
        "mean_kld_error": kld.error,
        "mean_kld_upper": kld.mean + kld.margin,
        "max_kld": float(scores.kld.max()),
        **percentiles,
        "same_top": top.mean,
        "same_top_error": top.error,
        "chunks": kld.chunks,
        "tokens": scores.kld.size,
        "non_finite": broken,
    }
    limits = {name: limit for name, limit in (("max_mean", max_mean), ("min_same_top", min_same_top)) if limit is not None}
    said = [
        f"mean KL divergence {kld.mean:.5f} ± {kld.error:.5f} nats",
        f"same top token {100 * top.mean:.2f} ± {100 * top.error:.2f} %",
        *(f"limit {name} {limit:g}" for name, limit in limits.items()),
    ]
    return CheckResult(
        check="divergence",
        verdict=worst([verdict for verdict, _ in gates]),
        summary="; ".join([", ".join(said), *(note for _, note in gates if note)]),
        values=finite(values),
        limits=limits,
        engine=scores.engine,
        chunk_means=chunk_means(kld=scores.kld, same_top=scores.same_top),
    )
