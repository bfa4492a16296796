"""A target of a given size: the errors of candidate types are measured, types chosen, and the result held against the largest
of llama.cpp's mixtures that fits; the better of the two by divergence is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from quantkit import making, quality, workspace
from quantkit.codecs import gguf_tensors
from quantkit.codecs.gguf_tensors import Placement
from quantkit.formats.gguf import allocation, layout, mixture, naming
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.quality import Evaluation
from quantkit.values import CheckResult, Importance, Row, Weights
from quantkit.version import __version__


def settle(job: Job, plan: TargetPlan, observed: Mapping[str, Importance], asked: Evaluation | None) -> TargetPlan:
    """The final plan of an auto target; any other plan as it is.

    Without an evaluation text the measured choice is taken as it is, and the result says that nothing was compared.
    """
    if plan.target.format != "gguf" or plan.target.type != "auto":
        return plan
    errors = measure(job, plan, making.importance_of(job, plan.gguf, observed))
    chosen = layout.allocated(plan, job.snapshot, errors, naming.model_name(job.snapshot))
    if chosen is None:
        return replace(plan, choice=_result("no choice of types fits the size: the stock mixture was kept", {}))
    if asked is None:
        return replace(chosen, choice=_result("types by measured error; nothing was compared, since checks are off", {}))
    ours, stock = (_distance(job, one, observed, asked, kind) for one, kind in ((chosen, "chosen"), (plan, "stock")))
    best, word = (chosen, "better than") if ours <= stock else (plan, "no better than")
    what = "1 - cosine" if quality.kind(job.snapshot) == "encoder" else "KLD"
    kept = "kept" if best is chosen else "given up for it"
    said = f"types by measured error ({what} {ours:.4f}) are {word} the largest stock mixture that fits ({stock:.4f}): {kept}"
    return replace(best, choice=_result(said, {"chosen_kld": ours, "stock_kld": stock}))


def measure(job: Job, plan: TargetPlan, weighed: Mapping[str, Importance]) -> dict[str, dict[str, float]]:
    """Tensor name -> candidate type -> relative error, for every tensor whose type is free; kept for a later run."""
    path = job.work / f"{plan.name}-errors.json"
    made_from = workspace.key(
        source=layout.source_digest(job.snapshot),
        rows=[(row.name, row.shape) for row in plan.rows],
        importance=making.digest_of(weighed),
        quantkit=__version__,
    )
    if workspace.recall(path, made_from) is None:
        found = _measured(job, plan, weighed)
        with workspace.replacing(path) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
        workspace.remember(path, made_from)
    kept: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def _measured(job: Job, plan: TargetPlan, weighed: Mapping[str, Importance]) -> dict[str, dict[str, float]]:
    placed, wish = layout.placements(job.snapshot), layout.wish(plan.gguf)
    tied = not any(row.name == "output.weight" for row in plan.rows)
    free = [
        row
        for row in plan.rows
        if row.name in placed
        and mixture.is_quantised(row.name, row.shape)
        and allocation.ladder(row.shape[-1])
        and mixture.said(row.name, wish, tied) is None
    ]
    found = {}
    with ThreadPoolExecutor(job.threads) as pool:
        tasks = [pool.submit(_errors, job.snapshot.weights, placed[row.name], row, weighed.get(row.name)) for row in free]
        for index, (row, task) in enumerate(zip(free, tasks, strict=True)):
            found[row.name] = task.result()
            job.progress(f"measure types {plan.name}", index + 1, len(free))
    return found


def _errors(weights: Weights, placement: Placement, row: Row, importance: Importance | None) -> dict[str, float]:
    """Relative error of every candidate type on a sample of rows; of a stack, of its middle matrix."""
    rows, matrix = gguf_tensors.rows_of(placement), len(placement.pieces) // 2
    if placement.transposed:
        values = gguf_tensors.read(weights, placement, 0, rows)[allocation.sample(rows, row.shape[-1])]
    else:
        picked = (matrix * rows + index for index in allocation.sample(rows, row.shape[-1]))
        values = np.concatenate([gguf_tensors.read(weights, placement, index, index + 1) for index in picked])
    seen = importance.of(matrix) if importance else None
    values = np.ascontiguousarray(values)
    return {kind: allocation.relative_error(values, seen, kind) for kind in allocation.ladder(row.shape[-1])}


def _distance(job: Job, plan: TargetPlan, observed: Mapping[str, Importance], asked: Evaluation, kind: str) -> float:
    """How far a file of this plan is from the original (quality.distance); the file is removed again."""
    files = tuple(replace(file, name=f"{kind}-{file.name}{workspace.PARTIAL}") for file in plan.files)
    artefact = making.write(job, replace(plan, files=files), observed)
    try:
        return quality.distance(job, artefact.path, quality.make_reference(job, asked))
    finally:
        for file in artefact.files:
            file.path.unlink(missing_ok=True)


def _result(summary: str, values: Mapping[str, float]) -> CheckResult:
    return CheckResult("allocation", "report", summary, values, {}, "quantkit")
