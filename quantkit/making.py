"""From a fetched checkpoint to artefacts: each step is kept in the build folder and found there again by a later run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import calibrating, workspace
from quantkit.calibration import importance
from quantkit.codecs import imatrix
from quantkit.formats.gguf import layout, writer
from quantkit.job import Job
from quantkit.manifest import FileRecord, ImportanceRecord
from quantkit.planning import TargetPlan
from quantkit.targets import GgufTarget
from quantkit.values import U8, Artefact, Importance, Written
from quantkit.version import __version__


def observe(job: Job, plans: Sequence[TargetPlan]) -> Mapping[str, Importance]:
    """HF tensor name -> what calibration saw of its input; empty when no planned target wants it."""
    calibration = job.recipe.calibration
    if calibration is None or not any(plan.weighed for plan in plans):
        return {}
    given = calibrating.calibrate(job)
    path = job.work / "importance.npz"
    made_from = workspace.key(
        source=layout.source_digest(job.snapshot),
        config=job.snapshot.config,
        tokenizer=job.snapshot.tokenizer,
        text=given.digests,
        calibration=calibration.model_dump(),
        quantkit=__version__,
    )
    if workspace.recall(path, made_from) is None:
        found = importance.measure(
            job.snapshot.config, job.snapshot.weights, given.sequences, threads=job.threads, progress=job.progress
        )
        with workspace.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(found))
        workspace.remember(path, made_from)
    return _importance(dict(np.load(path)))


def write(
    job: Job, plan: TargetPlan, observed: Mapping[str, Importance], solved: Mapping[str, Callable[[], U8]] | None = None
) -> Artefact:
    """The planned files, made now. solved: see `writer.write`."""
    weighed = importance_of(job, plan.gguf, observed)
    return writer.write(
        plan, job.snapshot, job.work, importance=weighed, solved=solved or {}, threads=job.threads, progress=job.progress
    )


_FIELDS = ("squares", "means", "counts")


def _arrays(found: Mapping[str, Importance]) -> dict[str, Any]:
    """For np.savez: "name:field" -> array."""
    fields = ((name, field, getattr(value, field)) for name, value in found.items() for field in _FIELDS)
    return {f"{name}:{field}": array for name, field, array in fields if array is not None}


def _importance(arrays: Mapping[str, Any]) -> dict[str, Importance]:
    """The inverse of `_arrays`."""
    names = dict.fromkeys(key.rpartition(":")[0] for key in arrays)
    return {
        name: Importance(arrays[f"{name}:squares"], arrays.get(f"{name}:means"), arrays[f"{name}:counts"]) for name in names
    }


def importance_of(job: Job, target: GgufTarget, observed: Mapping[str, Importance]) -> dict[str, Importance]:
    """What weighs a target's errors, under GGUF names: the calibration's, an imatrix file's, or nothing. The calibration's is
    taken as its file holds it, so that codes can be derived from that file again.

    Raises SourceError for a file that is not of this model.
    """
    if isinstance(target.imatrix, str):
        return layout.read_importance(job.snapshot, Path(target.imatrix).expanduser())
    return imatrix.as_written(layout.importance(job.snapshot, observed)) if target.imatrix else {}


def write_importance(job: Job, observed: Mapping[str, Importance]) -> ImportanceRecord | None:
    """The calibration's importance as the file that llama-quantize reads, beside the artefacts."""
    calibration = job.recipe.calibration
    if calibration is None or not observed:
        return None
    path = job.work / layout.imatrix_file(job.snapshot)
    found = layout.importance(job.snapshot, observed)
    with workspace.replacing(path) as temporary:
        datasets, chunks = [uri.rpartition("/")[2] for uri, _ in calibration.counts()], calibration.sequences
        imatrix.write(temporary, found, datasets=datasets, chunks=chunks, chunk_size=calibration.length)
    experts = np.concatenate([value.counts for value in found.values() if len(value.counts) > 1] or [np.zeros(0, np.int64)])
    return ImportanceRecord(
        file=FileRecord(name=path.name, nbytes=path.stat().st_size, sha256=workspace.digest(path)),
        text=", ".join(uri for uri, _ in calibration.counts()),
        tokens=calibration.sequences * calibration.length,
        tensors=len(found),
        experts=len(experts),
        unseen_experts=int((experts == 0).sum()),
        fewest_rows=int(experts.min()) if len(experts) else None,
    )


def make(
    job: Job,
    plan: TargetPlan,
    observed: Mapping[str, Importance],
    solved: Mapping[str, Callable[[], U8]] | None = None,
    digests: Mapping[str, str] | None = None,
) -> Artefact:
    """The planned file, or the same one of an earlier run. solved: see `writer.write`; digests: of these."""
    weighed = importance_of(job, plan.gguf, observed)
    made_from = workspace.key(
        rows=plan.rows,
        metadata=layout.metadata(plan.gguf, plan.digest, job.snapshot),
        quantkit=__version__,
        importance=digest_of(weighed),
        codes=digests,
    )
    kept = [workspace.recall(job.work / file.name, made_from) for file in plan.files]
    if all(kept):
        files = tuple(
            Written(job.work / file.name, record["stamp"][0], record["sha256"])
            for file, record in zip(plan.files, kept, strict=True)
            if record is not None
        )
        return Artefact(plan.name, files, plan.rows, **(kept[0] or {})["facts"])
    artefact = write(job, plan, observed, solved)
    facts = {"seconds": artefact.seconds, "peak_rss_bytes": artefact.peak_rss_bytes}
    for written in artefact.files:
        workspace.remember(written.path, made_from, sha256=written.sha256, **facts)
    return artefact


def folder(job: Job, plan: TargetPlan, marker: Path, made_from: str, write: Callable[[], Artefact]) -> Artefact:
    """A folder of an earlier run, where it was made of the same and all of its files are whole; else as `write` makes it now.
    marker: the file that tells of it."""
    if (record := workspace.recall(marker, made_from)) is not None:
        facts = record["facts"]
        files = [Written(job.work / name, nbytes, sha256) for name, nbytes, sha256, _ in facts["files"]]
        if all(_whole(file, seen) for file, (*_, seen) in zip(files, facts["files"], strict=True)):
            return Artefact(plan.name, tuple(files), plan.rows, facts["seconds"], facts["peak_rss_bytes"])
    artefact = write()
    with workspace.replacing(marker) as temporary:
        temporary.write_text(plan.name, encoding="utf-8")
    listed = [
        (str(file.path.relative_to(job.work)), file.nbytes, file.sha256, workspace.stamp(file.path)) for file in artefact.files
    ]
    workspace.remember(marker, made_from, files=listed, seconds=artefact.seconds, peak_rss_bytes=artefact.peak_rss_bytes)
    return artefact


def _whole(file: Written, seen: list[int]) -> bool:
    return file.path.is_file() and (workspace.stamp(file.path) == seen or workspace.digest(file.path) == file.sha256)


def digest_of(found: Mapping[str, Importance]) -> dict[str, str]:
    """sha256 of every tensor's importance."""
    return {
        name: hashlib.sha256(value.squares.tobytes() + (b"" if value.means is None else value.means.tobytes())).hexdigest()
        for name, value in found.items()
    }
