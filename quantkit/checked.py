"""Checks that an earlier run passed on the same files, in the same engines, on the same machine are not run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantkit import peer_files, verification, workspace
from quantkit.formats.gguf import layout
from quantkit.job import Job
from quantkit.manifest import TargetRecord
from quantkit.planning import TargetPlan
from quantkit.quality import Evaluation
from quantkit.report import machine
from quantkit.spill import Codes
from quantkit.values import Artefact, Importance
from quantkit.verification import Results
from quantkit.version import __version__


def verify_all(
    job: Job,
    plans: Sequence[TargetPlan],
    artefacts: Sequence[Artefact],
    asked: Evaluation | None,
    codes: Mapping[str, Codes],
    observed: Mapping[str, Importance],
) -> Results:
    """As verification.verify_all, and what the recipe's peers make of the same types; records that passed are kept in the build
    folder and found there again."""
    if asked is None:
        return verification.verify_all(job, plans, artefacts, asked, codes, observed)
    here = machine.describe().model_dump(include={"cpu", "versions", "python"})
    keys = {artefact.target: _key(job, plan, artefact, asked, here) for plan, artefact in zip(plans, artefacts, strict=True)}
    known = {name: found for name, key in keys.items() if (found := _recall(job, name, key)) is not None}
    pairs = [(plan, artefact) for plan, artefact in zip(plans, artefacts, strict=True) if plan.name not in known]
    if pairs:
        left, made = zip(*pairs, strict=True)
        results = verification.verify_all(job, left, made, asked, codes, observed)
        known |= {record.name: record for record in results.targets}
        for record in results.targets:
            if record.verdict == "pass":
                _remember(job, record, keys[record.name])
    texts = {each.text.name: each.text.sha256 for each in (asked, asked.second) if each is not None}
    peers = peer_files.measure(job, plans, asked, observed)
    return Results(texts, tuple(known[plan.name] for plan in plans), peers)


def _key(job: Job, plan: TargetPlan, artefact: Artefact, asked: Evaluation, here: Mapping[str, object]) -> str:
    gates = job.recipe.gates(plan.target)
    return workspace.key(
        files=[(file.path.name, file.sha256) for file in artefact.files],
        made=(artefact.seconds, artefact.peak_rss_bytes),
        rows=plan.rows,
        choice=plan.choice,
        source=layout.source_digest(job.snapshot),
        texts=[each.text.sha256 for each in (asked, asked.second) if each is not None],
        gates=gates.model_dump(exclude={"peers"}) if gates else None,
        prompts=job.recipe.prompts,
        threads=job.threads,
        machine=here,
        quantkit=__version__,
    )


def _recall(job: Job, name: str, key: str) -> TargetRecord | None:
    path = job.work / f"{name}.checks.json"
    if workspace.recall(path, key) is None:
        return None
    return TargetRecord.model_validate_json(path.read_text(encoding="utf-8"))


def _remember(job: Job, record: TargetRecord, key: str) -> None:
    path = job.work / f"{record.name}.checks.json"
    with workspace.replacing(path) as temporary:
        temporary.write_text(record.model_dump_json(), encoding="utf-8")
    workspace.remember(path, key)
