"""An encoder's embeddings against its original's: how alike each is, and whether texts keep their nearest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from quantkit.checks.verdict import Verdict, at_least, chunk_means, estimate, finite, worst
from quantkit.errors import WeightError
from quantkit.values import F32, CheckResult, Embedder, Progress

F64 = NDArray[np.float64]


def pool(hidden: F32, how: str | None) -> F32:
    """Embeddings (n, width) of final hidden states (n, length, width): "mean", "cls" (also where nothing is said) or "last"."""
    if how == "mean":
        return np.asarray(hidden.mean(1))
    return hidden[:, -1] if how == "last" else hidden[:, 0]


def embed(embedder: Embedder, tokens: NDArray[np.int32], progress: Progress | None = None) -> F32:
    """Embeddings (n, width) of texts given as tokens (n, length)."""
    rows = []
    for index, text in enumerate(tokens):
        rows.append(embedder.embed(text.tolist()))
        if progress is not None:
            progress("embed", index + 1, len(tokens))
    return np.stack(rows)


def check(
    found: F32,
    wanted: F32,
    *,
    chunks: int,
    engine: str,
    min_cosine: float | None = None,
    min_rank: float | None = None,
) -> CheckResult:
    """Embeddings of the artefact and of the original, (n, width); neighbours of the same of `chunks` are not independent.

    cosine: of both embeddings of a text. rank: Spearman's correlation of a text's cosines with all the others, among the
    artefact's embeddings and among the original's: a search that sorts by cosine sees no more than this.
    Without limits: a report. Raises WeightError where the widths differ.
    """
    if found.shape != wanted.shape:
        raise WeightError(f"embeddings are {found.shape} of the artefact, {wanted.shape} of the original: not one model")
    broken = int((~np.isfinite(found).all(1)).sum())
    ours, theirs = _unit(found), _unit(wanted)
    cosines, ranks = (ours * theirs).sum(1).reshape(chunks, -1), _ranks_kept(ours, theirs).reshape(chunks, -1)
    cosine, rank = estimate(cosines), estimate(ranks)
    gates: list[tuple[Verdict, str]] = []
    if min_cosine is not None:
        gates.append(at_least(cosine, min_cosine))
    if min_rank is not None:
        gates.append(at_least(rank, min_rank))
    if broken:
        gates.append(("fail", f"{broken} of {len(found)} embeddings are not finite"))
    limits = {name: limit for name, limit in (("min_cosine", min_cosine), ("min_rank", min_rank)) if limit is not None}
    values = {
        "cosine": cosine.mean, "cosine_error": cosine.error, "rank": rank.mean, "rank_error": rank.error,
        "texts": len(found), "chunks": chunks, "non_finite": broken,
    }  # fmt: skip
    said = [
        f"cosine {cosine.mean:.5f} ± {cosine.error:.5f}",
        f"rank correlation {rank.mean:.5f} ± {rank.error:.5f} over {len(found)} texts",
        *(f"limit {name} {limit:g}" for name, limit in limits.items()),
    ]
    summary = "; ".join([", ".join(said), *(note for _, note in gates if note)])
    means = chunk_means(cosine=cosines, rank=ranks)
    return CheckResult("embedding", worst([verdict for verdict, _ in gates]), summary, finite(values), limits, engine, means)


def _unit(rows: F32) -> F64:
    long = rows.astype(np.float64)
    found: F64 = long / np.maximum(np.linalg.norm(long, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return found


def _ranks_kept(ours: F64, theirs: F64) -> F64:
    return np.array([_spearman(np.delete(ours @ ours[i], i), np.delete(theirs @ theirs[i], i)) for i in range(len(ours))])


def _spearman(one: Sequence[float] | F64, other: Sequence[float] | F64) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
