"""The end of a run: manifest, report, card and what lies beside them, written whether or not the checks passed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from quantkit.codecs import gguf_config
from quantkit.formats.gguf import naming
from quantkit.job import Job
from quantkit.manifest import ImportanceRecord, MachineRecord, Manifest, RecipeRecord, SourceRecord
from quantkit.planning import Plan
from quantkit.recipe_file import Document
from quantkit.report import card, contents, html, machine
from quantkit.values import Snapshot
from quantkit.verification import Results
from quantkit.version import __version__
from quantkit.workspace import replacing


def seal(job: Job, document: Document, plan: Plan, results: Results, importance: ImportanceRecord | None = None) -> Manifest:
    """Write manifest.json, report.html, report.json, README.md, Modelfile and the licence's files into the build folder."""
    manifest = Manifest(
        quantkit=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=RecipeRecord(name=document.name, digest=document.recipe.whole_digest(), text=document.text),
        source=_source(document, plan, job.snapshot),
        machine=_machine(results),
        text=dict(results.text),
        targets=list(results.targets),
        importance=importance,
    )
    write(job, manifest)
    return manifest


def write(job: Job, manifest: Manifest) -> tuple[str, ...]:
    """The documents of a manifest into the build folder; their names."""
    found = documents(manifest, job.snapshot)
    for name, content in found.items():
        with replacing(job.work / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return tuple(found)


def passed(manifest: Manifest) -> bool:
    return manifest.verdict in ("pass", "unchecked")


def documents(manifest: Manifest, snapshot: Snapshot) -> dict[str, str]:
    """What lies beside the artefacts: file name -> text."""
    found = {
        **snapshot.licence.files,
        "manifest.json": manifest.model_dump_json(indent=2) + "\n",
        "report.json": contents.of(manifest).model_dump_json(indent=2) + "\n",
        "report.html": html.render(manifest),
        "README.md": card.card(manifest),
    }
    if any(target.format == "gguf" for target in manifest.targets):
        found["Modelfile"] = card.modelfile(manifest)
    digests = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in found.items()}
    digests |= {file.name: file.sha256 for file in manifest.files}
    return found | {"SHA256SUMS": card.sha256sums(digests)}


def _machine(results: Results) -> MachineRecord:
    """This machine; with its memory bandwidth, where a speed was measured that it explains."""
    here = machine.describe()
    if any(target.speed for target in results.targets):
        return here.model_copy(update={"bandwidth": machine.bandwidth()})
    return here


def _source(document: Document, plan: Plan, snapshot: Snapshot) -> SourceRecord:
    return SourceRecord(
        uri=snapshot.uri,
        kind=snapshot.kind,
        name=naming.model_name(snapshot).split("/")[-1],
        repo=snapshot.repo or document.recipe.base_model,
        commit=snapshot.commit,
        architecture=plan.architecture,
        parameters=plan.parameters,
        digests=dict(snapshot.digests),
        licence=snapshot.licence.id,
        licence_name=snapshot.licence.name,
        licence_link=snapshot.licence.link,
        context_length=gguf_config.context_length(snapshot.config),
        already_quantised=snapshot.quantised(),
    )
