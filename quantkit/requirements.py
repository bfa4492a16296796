"""The memory that an artefact needs: predicted at the contexts a reader asks about, measured at three of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace

from quantkit import footprint, footprint_onnx, footprint_onnxruntime, footprint_torch, quality, resident
from quantkit.codecs import gguf_config
from quantkit.errors import UnresolvedError
from quantkit.footprint import Memory
from quantkit.formats.onnx import builder
from quantkit.job import Job
from quantkit.manifest import MemoryRecord
from quantkit.planning import TargetPlan
from quantkit.report import machine
from quantkit.values import Artefact, Resident, Row, Snapshot

PATIENCE = 60.0  # seconds that a context may take by what the one before took
FLOPS = {"gguf": 15e9, "onnx": 15e9, "gptq": 3e9}  # of one core, rounded down: whether to begin; torch's bfloat16 is slow


def predict(format: str, nbytes: int, rows: Sequence[Row], snapshot: Snapshot, contexts: Iterable[int]) -> list[Memory]:
    """Of an artefact whose graph or weight files have `nbytes`, in its format's engine."""
    config = snapshot.config
    if format == "gguf":
        return footprint.memory(nbytes, rows, config, contexts, instruction_sets=machine.instruction_sets())
    if format == "onnx":
        if config.get("model_type") in builder.KNOWN:
            return footprint_onnx.memory(nbytes, rows, config, contexts)
        return footprint_onnxruntime.memory(nbytes, rows, config, contexts, kind=quality.kind(snapshot))
    return footprint_torch.memory(rows, config, contexts, instruction_sets=machine.instruction_sets())


def records(job: Job, plan: TargetPlan, artefact: Artefact, *, run: bool) -> list[MemoryRecord]:
    """Predicted memory at the standard contexts. run: with what child processes took at the recipe's contexts, as far as the
    model goes, memory suffices and PATIENCE lasts.
    """
    format, limit = plan.target.format, gguf_config.context_length(job.snapshot.config)
    nbytes = sum(file.nbytes for file in artefact.files if file.path.suffix != ".json")
    found = list(_measured(job, format, artefact, nbytes, limit)) if run else []
    peaks = {item.context: item.peak for item in found}
    contexts = sorted({*footprint.standard_contexts(limit), *peaks})
    predicted = predict(format, nbytes, artefact.rows, job.snapshot, contexts)
    if found:  # what the model adds is predicted, the process is known
        predicted = [replace(item, process=found[0].before) for item in predicted]
    return [MemoryRecord(**asdict(item), total=item.total, measured=peaks.get(item.context)) for item in predicted]


def _measured(job: Job, format: str, artefact: Artefact, nbytes: int, limit: int) -> Iterator[Resident]:
    if not resident.available(format):
        return
    checks = job.recipe.checks
    contexts = footprint.within(checks.memory.contexts if checks else (), limit)
    needs = predict(format, nbytes, artefact.rows, job.snapshot, contexts)
    per_token = 2.0 * job.snapshot.parameters() / (FLOPS[format] * job.threads)
    for step, need in enumerate(needs, start=1):
        if per_token * need.context > PATIENCE or need.total + footprint.OS_RESERVE > machine.memory_bytes():
            return
        try:
            found = resident.measure(
                artefact.path, format=format, kind=quality.kind(job.snapshot), threads=job.threads, context=need.context
            )
        except UnresolvedError:  # an engine that does not run it, which the checks say
            return
        yield found
        per_token = found.seconds / need.context
        job.progress("memory", step, len(needs))
