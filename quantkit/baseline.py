"""The unquantised model in the engine: what speed and answers are compared with.

It is an F16 file of ours that lives while the checks run, under a temporary name all the while. Where the whole does not
fit this machine's memory or disk, speed is compared on a cut: the first two layers of the original as F16 and of the original
as the artefact's type. The label says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit import arch, checkpoint, footprint, planning, workspace
from quantkit.checks import samples
from quantkit.engines import llama_cpp, llama_cpp_encoder
from quantkit.errors import ResourceError
from quantkit.formats.gguf import layout, writer
from quantkit.job import Job
from quantkit.planning import TargetPlan
from quantkit.report import machine
from quantkit.targets import GgufTarget
from quantkit.values import F32, Snapshot, TensorInfo, Weights

TARGET = GgufTarget(format="gguf", type="F16")
CUT_LAYERS = 2
ANSWER_CONTEXT = 512
ANSWER_TOKENS = 64
NO_ANSWER = "(the unquantised model does not fit this machine)"
NO_PEER = (
    "checks: peers: llama.cpp quantises an F16 file of the whole model, which does not fit this machine's memory or disk; "
    "leave peers out, or use --work-dir on a larger disk"
)


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


def plan(snapshot: Snapshot, folder: Path) -> TargetPlan:
    """The baseline of this model in `folder`: whole where it fits, else a cut."""
    full = _plan(snapshot, TARGET)
    return full if fits(full, snapshot, folder) else _plan(first_layers(snapshot), TARGET)


def fits(full: TargetPlan, snapshot: Snapshot, folder: Path) -> bool:
    """Whether the F16 file can be held in `folder`, which need not exist yet, and run in this machine's memory."""
    nbytes = sum(row.nbytes for row in full.rows)
    need = footprint.memory(nbytes, full.rows, snapshot.config, [ANSWER_CONTEXT])[0].total
    return need < 0.9 * machine.memory_bytes() and nbytes < 0.9 * planning.free_disk(folder)


def float_graph_fits(snapshot: Snapshot, folder: Path) -> bool:
    """Whether `folder` can hold the float32 graph that ONNX artefacts are compared with, and this machine run it."""
    whole = 4 * snapshot.parameters()
    return 3 * whole < machine.memory_bytes() and whole < 0.9 * planning.free_disk(folder)


def is_cut(snapshot: Snapshot, folder: Path) -> bool:
    """Whether the whole does not fit."""
    return not fits(_plan(snapshot, TARGET), snapshot, folder)


def first_layers(snapshot: Snapshot) -> Snapshot:
    """The same checkpoint with its first CUT_LAYERS layers alone."""
    architecture = arch.find(snapshot.config)
    counts = {architecture.keys.get(key, key) for key in ("num_hidden_layers", "num_decoder_layers")} & snapshot.config.keys()
    config = {**snapshot.config, **{key: min(CUT_LAYERS, snapshot.config[key]) for key in counts}}
    held = {piece.name for piece in checkpoint.locate(architecture, config, snapshot.weights.infos).values()}
    infos = {name: info for name, info in snapshot.weights.infos.items() if name in held}
    return replace(snapshot, config=config, weights=FirstLayers(snapshot.weights, infos))


@contextmanager
def made(job: Job) -> Iterator[Baseline]:
    """The baseline, while the block runs."""
    cut = is_cut(job.snapshot, job.work)
    with _written(job, TARGET, cut) as path:
        if cut:
            label = f"F16 of the first {CUT_LAYERS} layers, beside those layers as this type (the whole does not fit here)"
            yield Baseline(path, label, True, (NO_ANSWER,) * len(asked(job)))
        else:
            yield Baseline(path, "F16 of the same weights", False, answers(job, path))


@contextmanager
def whole(job: Job) -> Iterator[Path]:
    """The F16 file of the whole model, while the block runs. Raises ResourceError where it does not fit."""
    if is_cut(job.snapshot, job.work):
        raise ResourceError(NO_PEER)
    with _written(job, TARGET, False) as path:
        yield path


@contextmanager
def counterpart(job: Job, target: GgufTarget, artefact: Path, original: Baseline) -> Iterator[Path]:
    """What to time against the baseline: the artefact itself, or a file of its type cut as the baseline is."""
    if not original.cut:
        yield artefact
        return
    with _written(job, target, True) as path:
        yield path


def asked(job: Job) -> tuple[str, ...]:
    """The recipe's prompts; an encoder answers none."""
    return () if arch.find(job.snapshot.config).kind == "encoder" else job.recipe.prompts


def prompts(job: Job) -> list[list[int]]:
    """The prompts as tokens. Raises InputError, UnresolvedError for one that cannot be put to the model."""
    assert job.snapshot.tokenizer is not None
    return samples.encode(job.snapshot.tokenizer, asked(job), ANSWER_CONTEXT - ANSWER_TOKENS)


def answers(job: Job, path: Path) -> tuple[str, ...]:
    """Greedy answers to the prompts by the file at `path`, through the chat template."""
    assert job.snapshot.tokenizer is not None
    if not asked(job):
        return ()
    transducer = arch.find(job.snapshot.config).kind == "encoder-decoder"
    open_model = llama_cpp_encoder.open_transducer if transducer else llama_cpp.open_runner
    with closing(open_model(path, context=ANSWER_CONTEXT, threads=job.threads)) as runner:
        return tuple(samples.answer(runner, job.snapshot.tokenizer, prompts(job), ANSWER_TOKENS))


def _plan(snapshot: Snapshot, target: GgufTarget) -> TargetPlan:
    plan = layout.plan(target.model_copy(update={"split": None}), "", snapshot, "baseline")
    return replace(plan, files=(replace(plan.files[0], name=f"baseline-{target.type}.gguf{workspace.PARTIAL}"),))


@contextmanager
def _written(job: Job, target: GgufTarget, cut: bool) -> Iterator[Path]:
    """The original, or its cut, as a file of this type, while the block runs."""
    snapshot = first_layers(job.snapshot) if cut else job.snapshot
    planned, progress = _plan(snapshot, target), job.labelled("(baseline)").progress
    path = writer.write(planned, snapshot, job.work, importance={}, threads=job.threads, progress=progress).path
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
