"""The unquantised model in the engine: what speed and answers are compared with.

It is an F16 file of ours that lives while the checks run. Where the whole does not fit this machine's memory or disk, speed is
compared on a cut: the first two layers of the original as F16 and of the original as the artefact's type. The label says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from quantkit import arch, footprint
from quantkit.checks import samples
from quantkit.engines import llama_cpp
from quantkit.formats.gguf import layout, writer
from quantkit.planning import TargetPlan
from quantkit.recipe import GgufTarget
from quantkit.report import machine
from quantkit.values import F32, Progress, Snapshot, TensorInfo, Weights

TARGET = GgufTarget(format="gguf", type="F16")
CUT_LAYERS = 2
ANSWER_CONTEXT = 512
ANSWER_TOKENS = 64
NO_ANSWER = "(the unquantised model does not fit this machine)"


@dataclass(frozen=True, slots=True)
class Baseline:
    """path: the F16 file. cut: the artefact's counterpart must be cut too. answers: to the recipe's prompts."""

    path: Path
    label: str
    cut: bool
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FirstLayers:
    """A checkpoint's weights without the tensors that `infos` does not list."""

    whole: Weights
    infos: Mapping[str, TensorInfo]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        return self.whole.read(name, start, stop)

    def close(self) -> None:
        self.whole.close()


def plan(snapshot: Snapshot) -> TargetPlan:
    """The baseline of this model: whole where it fits, else a cut."""
    whole = _plan(snapshot, TARGET, "baseline-F16")
    return whole if fits(whole, snapshot) else _plan(first_layers(snapshot), TARGET, "baseline-F16")


def fits(whole: TargetPlan, snapshot: Snapshot, *, memory: int | None = None, disk: int | None = None) -> bool:
    """Whether the F16 file can be held on disk and run in memory; bytes, by default what this machine has."""
    nbytes = sum(row.nbytes for row in whole.rows)
    need = footprint.memory(nbytes, whole.rows, snapshot.config, [ANSWER_CONTEXT])[0].total
    disk = psutil.disk_usage(".").free if disk is None else disk
    return need < 0.9 * (machine.memory_bytes() if memory is None else memory) and nbytes < 0.9 * disk


def first_layers(snapshot: Snapshot, layers: int = CUT_LAYERS) -> Snapshot:
    """The same checkpoint with its first layers alone."""
    config = {**snapshot.config, "num_hidden_layers": min(layers, snapshot.config["num_hidden_layers"])}
    held = arch.expected(arch.find(config), config)
    infos = {name: info for name, info in snapshot.weights.infos.items() if name in held}
    return replace(snapshot, config=config, weights=FirstLayers(snapshot.weights, infos))


@contextmanager
def made(snapshot: Snapshot, prompts: Sequence[str], work: Path, threads: int, progress: Progress) -> Iterator[Baseline]:
    """The baseline, while the block runs."""
    whole = _plan(snapshot, TARGET, "baseline-F16")
    cut = not fits(whole, snapshot)
    path = _write(first_layers(snapshot) if cut else snapshot, TARGET, "baseline-F16", work, threads, progress)
    try:
        if cut:
            label = f"F16 of the first {CUT_LAYERS} layers, beside the same layers as this type: the whole does not fit here"
            yield Baseline(path, label, True, (NO_ANSWER,) * len(prompts))
        else:
            yield Baseline(path, "F16 of the same weights", False, answers(path, snapshot, prompts, threads))
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def counterpart(
    artefact: Path, target: GgufTarget, baseline: Baseline, snapshot: Snapshot, work: Path, threads: int, progress: Progress
) -> Iterator[Path]:
    """What to time against the baseline: the artefact itself, or a file of its type cut as the baseline is."""
    if not baseline.cut:
        yield artefact
        return
    path = _write(first_layers(snapshot), target, f"cut-{target.type}", work, threads, progress)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def answers(path: Path, snapshot: Snapshot, prompts: Sequence[str], threads: int) -> tuple[str, ...]:
    """Greedy answers of the file at `path`, through the chat template."""
    assert snapshot.tokenizer is not None
    runner = llama_cpp.open_runner(path, context=ANSWER_CONTEXT, threads=threads)
    try:
        return tuple(samples.answer(runner, snapshot.tokenizer, prompts, ANSWER_TOKENS))
    finally:
        runner.close()


def _plan(snapshot: Snapshot, target: GgufTarget, name: str) -> TargetPlan:
    return replace(layout.plan(target, "", snapshot, name), name=name, file=f"{name}.gguf")


def _write(snapshot: Snapshot, target: GgufTarget, name: str, work: Path, threads: int, progress: Progress) -> Path:
    planned = _plan(snapshot, target, name)
    return writer.write(planned, target, snapshot, work, importance={}, threads=threads, progress=progress).path
