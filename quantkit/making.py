"""From a fetched checkpoint to artefacts: each step is kept in the build folder and found there again by a later run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from quantkit import workspace
from quantkit.calibration import corpus, importance
from quantkit.formats.gguf import layout, writer
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.source import text
from quantkit.values import F32, Artefact, Written
from quantkit.version import __version__


def observe(job: Job, plans: Sequence[TargetPlan]) -> Mapping[str, Importance]:
    """HF tensor name -> importance of its columns, float32 (width,); empty when no planned target wants it."""
    calibration = job.recipe.calibration
    if calibration is None or not any(plan.target.imatrix for plan in plans):
        return {}
    assert job.snapshot.tokenizer is not None
    given = text.fetch(calibration.text, job.work)
    path = job.work / "importance.npz"
    made_from = workspace.key(
        source=layout.source_digest(job.snapshot),
        config=job.snapshot.config,
        tokenizer=job.snapshot.tokenizer,
        text=given.sha256,
        calibration=calibration.model_dump(),
        quantkit=__version__,
    )
    if workspace.recall(path, made_from) is None:
        tokens = corpus.cut(
            given.path, job.snapshot.tokenizer, chunks=calibration.sequences, length=calibration.length, seed=calibration.seed
        )
        found = importance.measure(
            job.snapshot.config, job.snapshot.weights, tokens, threads=job.threads, progress=job.progress
        )
        with workspace.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **flattened(found))
        workspace.remember(path, made_from)
    return unflattened(dict(np.load(path)))


def make(job: Job, plan: TargetPlan, observed: Mapping[str, Importance]) -> Artefact:
    """The planned file, or the same one of an earlier run."""
    weighed = layout.importance(job.snapshot, observed) if plan.target.imatrix else {}
    made_from = workspace.key(
        rows=plan.rows,
        metadata=layout.metadata(plan.target, plan.digest, job.snapshot),
        quantkit=__version__,
        importance={name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in weighed.items()},
    )
    kept = [workspace.recall(job.work / file.name, made_from) for file in plan.files]
    if all(kept):
        files = tuple(
            Written(job.work / file.name, record["nbytes"], record["sha256"])
            for file, record in zip(plan.files, kept, strict=True)
            if record is not None
        )
        return Artefact(plan.name, files, plan.rows, **(kept[0] or {})["facts"])
    artefact = writer.write(plan, job.snapshot, job.work, importance=weighed, threads=job.threads, progress=job.progress)
    facts = {"seconds": artefact.seconds, "peak_rss_bytes": artefact.peak_rss_bytes}
    for written in artefact.files:
        workspace.remember(written.path, made_from, sha256=written.sha256, **facts)
    return artefact
