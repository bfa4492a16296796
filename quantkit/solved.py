"""What becomes of solved codes: checkpoints, the tensors of a GGUF file, and an account of how they were solved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from quantkit import making, skeleton, workspace
from quantkit.codecs import codes as stored_codes
from quantkit.formats.gptq import layout, writer
from quantkit.formats.onnx import schemes
from quantkit.formats.onnx.blocks import Blocks
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.recipe import Recipe
from quantkit.spill import FEW, Codes
from quantkit.values import U8, Artefact, CheckResult, Row, Snapshot
from quantkit.version import __version__


def quantised(plan: TargetPlan) -> list[Row]:
    """The checkpoint's matrices that are solved; of an ONNX graph those of the layers, each by itself; of a GGUF file those of
    the layers and the head that are whole tensors of the checkpoint, of a stack of experts each one, by its checkpoint's name
    or, where the checkpoint has a stack too, as `expert_of` names it."""
    if plan.target.format == "gptq":
        return [row for row in plan.rows if layout.of_type(row.type) is not None]
    found: list[Row] = []
    if plan.target.format == "gguf":
        sources = Counter(row.source for row in plan.rows)
        rows = [row for row in plan.rows if row.source and row.type in stored_codes.types()]
        whole = [row for row in rows if skeleton.layer_of(str(row.source)) or row.source == layout.HEAD]
        alone = [row for row in whole if len(row.shape) == 3 or sources[row.source] == 1]
        for row in alone:
            names = _stacked(row)
            found += [replace(row, name=name, shape=row.shape[-2:], nbytes=row.nbytes // len(names)) for name in names]
        return found
    for row in plan.rows:
        settings = schemes.of_type(row.type)
        if isinstance(settings, Blocks) and all(skeleton.layer_of(name) for name in row.sources):
            kind = layout.Settings(settings.bits, settings.block).type
            found += [replace(row, name=name, source=name, type=kind, wanted=kind) for name in row.sources]
    return found


def expert_of(name: str, expert: int) -> str:
    """What one matrix of a stack is called."""
    return f"{name}[{expert}]"


def _stacked(row: Row) -> list[str]:
    """What the matrices of a planned tensor are called."""
    source, experts = str(row.source), range(row.shape[0] if len(row.shape) == 3 else 0)
    if "*" in source:
        return [source.replace("*", str(expert)) for expert in experts]
    return [expert_of(row.name, expert) for expert in experts] or [source]


def account(plan: TargetPlan, codes: Codes) -> CheckResult:
    """What calibration left open: matrices with few tokens, columns never activated, damping that had to rise; and of a GGUF
    file whose codes were kept."""
    records = {row.name: codes.record(row.name) for row in quantised(plan)}
    few = [name for name, record in records.items() if record.tokens < FEW]
    damped = [name for name, record in records.items() if record.damping > plan.gptq.damp]
    dead = sum(record.dead_columns for record in records.values())
    losses = sorted(record.loss for record in records.values() if record.tokens >= FEW)
    loss = losses[len(losses) // 2] if losses else 0.0
    said = [f"relative output error {loss:.4g} in the middle matrix"] if losses else []
    if dead:
        said.append(f"{dead} columns never activated, rounded to nearest")
    if few:
        said.append(f"{len(few)} matrices met fewer than {FEW} tokens, rounded to nearest: {', '.join(few[:3])}")
    if damped:
        said.append(f"{len(damped)} needed more damping: {', '.join(damped[:3])}")
    spared = [name for name, record in records.items() if record.kept == "search" and record.tokens >= FEW]
    gains = sorted(ours / theirs for ours, theirs in (record.held_out for record in records.values()) if theirs > 0)
    if gains:
        said.append(f"on inputs held out {gains[len(gains) // 2]:.3g} of the search's output error in the middle matrix")
    if spared:
        said.append(f"{len(spared)} kept the search's codes, which did better there: {', '.join(spared[:3])}")
    values = {
        "dead_columns": dead,
        "few_tokens": len(few),
        "damped": len(damped),
        "median_loss": loss,
        "kept_search": len(spared),
    }
    return CheckResult("calibration", "report", "; ".join(said) or "nothing left open", values, {}, "quantkit")


def stored(plan: TargetPlan, codes: Codes) -> tuple[dict[str, Callable[[], U8]], dict[str, str]]:
    """Of a GGUF plan: tensor name -> its bytes when they are asked for, and the sha256 of what they are made of."""
    solved = {row.name for row in quantised(plan)}
    whole = {row.name: names for row in plan.rows if row.source and solved.issuperset(names := _stacked(row)) and names}

    def read(names: list[str]) -> U8:
        return np.concatenate([data for name in names if (data := codes.stored(name)) is not None])

    return {name: partial(read, names) for name, names in whole.items()}, {
        name: "".join(codes.record(each).codes for each in names) for name, names in whole.items()
    }


def make(job: Job, plan: TargetPlan, codes: Codes) -> Artefact:
    """The planned folder, or the same one of an earlier run."""
    digests, sources = {row.name: codes.record(row.name).codes for row in quantised(plan)}, _sources(job.recipe, plan)
    made_from = workspace.key(rows=plan.rows, codes=digests, sources=sources, config=job.snapshot.config, quantkit=__version__)
    write = partial(writer.write, plan, job.snapshot, job.work, codes.read, sources, job.progress)
    return making.folder(job, plan, codes.folder / "made.json", made_from, write)


def documents(recipe: Recipe, snapshot: Snapshot, plan: TargetPlan) -> dict[str, str]:
    """The text files of a GPTQ checkpoint's folder: name -> text."""
    return writer.documents(plan, snapshot, writer.arranged(plan), _sources(recipe, plan))


def _sources(recipe: Recipe, plan: TargetPlan) -> dict[str, Any]:
    """What a checkpoint's configuration says of how its codes were solved."""
    calibration = recipe.calibration
    assert calibration is not None
    texts = {uri.rpartition("/")[2]: count for uri, count in calibration.counts()}
    return {"calibration": {"texts": texts, "length": calibration.length}, "recipe": plan.digest}
