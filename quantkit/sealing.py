"""The end of a run: manifest, report, card and what lies beside them, written whether or not the checks passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from quantkit.codecs import gguf_config
from quantkit.formats.gguf import naming
from quantkit.job import Job
from quantkit.manifest import CostRecord, ImportanceRecord, MachineRecord, Manifest, RecipeRecord, SourceRecord
from quantkit.planning import Plan
from quantkit.recipe import SELF
from quantkit.recipe_file import Document
from quantkit.report import bom, card, contents, html, machine, ollama
from quantkit.source import text
from quantkit.values import Snapshot
from quantkit.verification import Results
from quantkit.version import __version__
from quantkit.workspace import replacing

MODELFILE = "Modelfile"


def seal(
    job: Job, document: Document, plan: Plan, results: Results, cost: CostRecord, importance: ImportanceRecord | None
) -> Manifest:
    """Write manifest, report, card, the recipe as typed, Modelfile and the licence's files into the build folder."""
    manifest = Manifest(
        quantkit=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=RecipeRecord(
            name=document.name,
            digest=document.recipe.whole_digest(),
            text=document.text,
            lock=document.lock.model_dump_json(indent=2) if document.lock else None,
        ),
        source=_source(document, plan, job.snapshot),
        machine=_machine(results),
        text=dict(results.text),
        calibration=_calibration(job),
        targets=list(results.targets),
        peers=list(results.peers),
        importance=importance,
        cost=cost,
    )
    write(job.work, manifest, carried(manifest, job.snapshot))
    return manifest


def carried(manifest: Manifest, snapshot: Snapshot) -> dict[str, str]:
    """What lies beside the artefacts and follows from the source: the licence's files and, for a GGUF, the Modelfile."""
    found = dict(snapshot.licence.files)
    if any(target.format == "gguf" for target in manifest.targets):
        ends = {"eos_token_id": snapshot.config.get("eos_token_id"), **snapshot.generation_config}
        found[MODELFILE] = ollama.modelfile(manifest, snapshot.tokenizer, ends, snapshot.licence.files.values())
    return found


def write(work: Path, manifest: Manifest, texts: Mapping[str, str]) -> tuple[str, ...]:
    """The documents of a manifest, and what was `carried`, into a folder; their names."""
    found = documents(manifest, texts)
    for name, content in found.items():
        with replacing(work / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return tuple(found)


def passed(manifest: Manifest) -> bool:
    return manifest.verdict in ("pass", "unchecked")


def documents(manifest: Manifest, texts: Mapping[str, str]) -> dict[str, str]:
    """What lies beside the artefacts: file name -> text. texts: what was `carried`."""
    found = {
        **texts,
        "manifest.json": manifest.model_dump_json(indent=2) + "\n",
        "report.json": contents.of(manifest).model_dump_json(indent=2) + "\n",
        "report.html": html.render(manifest),
        "README.md": card.card(manifest),
        f"{manifest.recipe.name}.yaml": manifest.recipe.text,
        "bom.cdx.json": json.dumps(bom.bom(manifest), indent=2) + "\n",
    }
    if manifest.recipe.lock is not None:
        found[f"{manifest.recipe.name}.lock"] = manifest.recipe.lock + "\n"
    digests = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in found.items()}
    digests |= {file.name: file.sha256 for file in manifest.files}
    return found | {"SHA256SUMS": card.sha256sums(digests)}


def _calibration(job: Job) -> dict[str, str]:
    """The digests of the texts that calibrated; what the model said itself is in the build folder alone."""
    given = job.recipe.calibration.counts() if job.recipe.calibration else []
    texts = [text.fetch(uri, job.work) for uri, _ in given if uri != SELF]
    return {each.name: each.sha256 for each in texts}


def _machine(results: Results) -> MachineRecord:
    """This machine; with memory bandwidth and throughput, where a speed was measured that they explain."""
    here = machine.describe()
    if any(target.speed for target in results.targets):
        return here.model_copy(update={"bandwidth": machine.bandwidth(), "flops": machine.throughput()})
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
        licence_files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in snapshot.licence.files.items()},
        context_length=gguf_config.context_length(snapshot.config),
        already_quantised=snapshot.quantised(),
    )
