"""GPTQ targets: their lanes of the walk, the codes of every matrix on disk as they come, and the checkpoints made of them.

A matrix that calibration reached with fewer tokens than FEW, or not at all, is rounded to nearest on a grid that weighs its
columns by what tokens there were: so few say nothing of how columns go together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from quantkit import calibrating, modules, skeleton, solved, walk, workspace
from quantkit.checkpoint import Piece
from quantkit.codecs import sequential
from quantkit.codecs.gguf import codecs
from quantkit.errors import ResourceError, WeightError
from quantkit.formats.gguf import layout as gguf_layout
from quantkit.formats.gptq import layout, writer
from quantkit.job import Job
from quantkit.kernels import gptq, hessian
from quantkit.kernels.finite import first_nonfinite_row
from quantkit.modules import ModuleWeights
from quantkit.planning import TargetPlan
from quantkit.spill import FEW, Codes, Record
from quantkit.values import F32, U8, Codec, Inputs, Row
from quantkit.version import __version__

HELD_OUT = 8  # one in so many micro-batches judges the codes of a GGUF file, as long as those before are fewer than so many
JUDGED = 2048  # tokens
SLAB = 512  # rows that are searched, or judged, at once
SINK = 64.0  # what a decoder's first token counts for: all that follow attend to it, most of all (Xiao et al., 2023: sinks)


def solve(job: Job, plans: Sequence[TargetPlan]) -> dict[str, Codes]:
    """Target name -> its codes, from one walk of a lane for each; what an earlier run finished is kept."""
    plans = [plan for plan in plans if plan.solved]
    calibration = job.recipe.calibration
    if not plans or calibration is None:
        return {}
    given = calibrating.calibrate(job)
    sequences = given.sequences.tokens
    keys = {plan.name: _key(job, plan, given.digests) for plan in plans}
    codes = {plan.name: Codes(job.work / f"{plan.name}-{keys[plan.name][:16]}.codes") for plan in plans}
    left = [plan for plan in plans if not all(codes[plan.name].holds(row.name) for row in solved.quantised(plan))]
    if not left:
        return codes
    for plan in left:
        codes[plan.name].folder.mkdir(exist_ok=True)
    keep = job.work / f"walk-{workspace.key(keys=[keys[plan.name] for plan in left])[:16]}.states"
    narrow = all(plan.gptq.activations == "bfloat16" for plan in left)
    view = modules.view(job.snapshot.config, job.snapshot.weights)
    count, originals = len(sequences), _Originals()
    before = any(plan.gptq.quality == "high" for plan in left)  # the model as it is goes first
    with ThreadPoolExecutor(job.threads) as pool:
        sinks = skeleton.kind(job.snapshot.config) == "decoder"
        solvers = [_Solver(plan, codes[plan.name], view, pool, originals.seen, _stacks(job, plan), sinks) for plan in left]
        lanes = [
            walk.Lane(slice(at * count, (at + 1) * count), solver.replace) for at, solver in enumerate(solvers, start=before)
        ]
        hidden = walk.walk(
            job.snapshot.config,
            job.snapshot.weights,
            np.tile(sequences, (len(left) + before, 1)),
            threads=job.threads,
            observe=originals.observe if before else None,
            lanes=lanes,
            narrow=narrow,
            keep=keep,
            progress=partial(_advance, job),
        )
        for solver, lane in zip(solvers, lanes, strict=True):
            solver.finish(hidden[lane.rows])
    keep.unlink(missing_ok=True)
    return codes


def _advance(job: Job, _: str, done: float, total: float) -> None:
    job.progress("gptq", done, total)


def _key(job: Job, plan: TargetPlan, digests: Mapping[str, str]) -> str:
    calibration = job.recipe.calibration
    assert calibration is not None
    return workspace.key(
        source=gguf_layout.source_digest(job.snapshot),
        config=job.snapshot.config,
        tokenizer=job.snapshot.tokenizer,
        text=digests,
        calibration=calibration.model_dump(),
        target=plan.gptq.model_dump(exclude={"checks"}),
        rows=[(row.name, row.type) for row in plan.rows],
        quantkit=__version__,
    )


def _stacks(job: Job, plan: TargetPlan) -> dict[str, list[tuple[str, Piece]]]:
    """Where a checkpoint stacks its experts: "gate_up_proj[3]" as stored -> what the plan calls its parts, and their rows."""
    found: dict[str, list[tuple[str, Piece]]] = {}
    if plan.target.format == "gguf":
        for name, placement in gguf_layout.placements(job.snapshot).items():
            if len(placement.shape) == 3 and "*" not in placement.source:
                for expert, piece in enumerate(placement.pieces):
                    found.setdefault(solved.expert_of(piece.name, expert), []).append((solved.expert_of(name, expert), piece))
    return found


@dataclass(frozen=True, slots=True)
class _Originals:
    """What the matrices of the layer under way meet in the model as it is, micro-batch by micro-batch."""

    seen: dict[str, list[F32]] = field(default_factory=dict)
    layer: list[str] = field(default_factory=list)

    def observe(self, name: str, x: F32) -> None:
        """`walk.Observe`: what the layer before met is let go."""
        here = skeleton.layer_of(name)
        if self.layer != [here]:
            self.seen.clear()
            self.layer[:] = [here]
        self.seen.setdefault(name, []).append(x)


@dataclass(frozen=True, slots=True)
class _Solver:
    """One target's lane: what the walk asks it to replace, it solves, and leaves on disk."""

    plan: TargetPlan
    codes: Codes
    view: ModuleWeights
    pool: Executor
    originals: Mapping[str, Sequence[F32]]  # what the layer's matrices meet in the model as it is
    stacks: Mapping[str, Sequence[tuple[str, Piece]]]
    sinks: bool  # whether a sequence's first token counts for SINK of them

    def replace(self, weights: Mapping[str, F32], inputs: Inputs) -> dict[str, F32]:
        """`staging.Replace`: matrices of the model, of which the checkpoint may hold each in several."""
        rows = {row.name: row for row in solved.quantised(self.plan)}
        parts = {name: self._parts(name, weight) for name, weight in weights.items()}
        if not any(stored in rows for found in parts.values() for stored, _ in found):
            return {}
        first = next(iter(weights))
        seen, held = self._split(inputs)
        tokens = sum(len(x) for x in seen)
        seen, held = self._counted(first, seen), self._counted(first, held)
        factor = self._factor(first, seen)
        shift = self._correction(first, seen, factor) if tokens >= FEW else None
        replaced = {}
        for name, found in parts.items():
            weight = weights[name].copy()
            for stored, part in found:
                if stored in rows:
                    aim = weight[part] if shift is None else weight[part] + hessian.multiply(weight[part], shift, self.pool)
                    weight[part] = self._solve(rows[stored], aim, factor, tokens, held)()
            replaced[name] = weight
        return replaced

    def _correction(self, name: str, inputs: Inputs, factor: hessian.Factor) -> F32 | None:
        """What makes up for the error that the inputs bring along; None where nobody asked or other tokens came (experts)."""
        if self.plan.gptq.quality != "high" or name.endswith("]"):
            return None
        return hessian.correction(inputs, self._counted(name, self.originals[name]), factor, self.pool)

    def _counted(self, name: str, inputs: Inputs) -> Inputs:
        """What a matrix meets, as it counts; an expert meets tokens whose place nobody knows."""
        return FirstCounted(inputs) if self.sinks and not name.endswith("]") else inputs

    def finish(self, hidden: F32) -> None:
        """The output head, whose inputs are the final hidden states, and matrices that no token reached."""
        experts = {part for parts in self.view.experts.values() for expert in parts for part in expert}
        pieces = {name: piece for parts in self.stacks.values() for name, piece in parts}
        for row in solved.quantised(self.plan):
            if row.name == layout.HEAD:
                seen, held = self._split(list(hidden))
                self._solve(row, self._read(row), self._factor(row.name, seen), sum(map(len, seen)), held)
            elif not self.codes.holds(row.name):
                if row.name not in experts and row.name not in pieces:
                    raise ResourceError(
                        f"{row.name} has no codes though the walk is past it: the build folder was changed; run with --force"
                    )
                ones = np.ones((1, row.shape[1]), np.float32)
                self._solve(row, self._read(row, pieces.get(row.name)), self._factor(row.name, [ones]), 0)

    def _read(self, row: Row, piece: Piece | None = None) -> F32:
        if piece is not None:
            return self.view.stored.read(piece.name, piece.start, piece.stop)
        found = self.view.read(row.name)
        return found if found.shape == row.shape else np.ascontiguousarray(found.T)

    def _parts(self, name: str, weight: F32) -> list[tuple[str, slice]]:
        """The stored matrices of which a matrix of the model is made, and which of its rows each is."""
        if not name.endswith("]"):
            shape = weight.shape if name not in self.view.infos else self.view.infos[name].shape
            return [(self.view.moved.get(name) or skeleton.stored(self.view, name, shape), slice(None))]
        fused, _, expert = name.rstrip("]").rpartition("[")
        if fused not in self.view.experts:
            stored = self.view.moved.get(fused, fused)
            first = int(expert) * self.view.infos[stored].shape[-2]
            parts = self.stacks.get(solved.expert_of(stored, int(expert)), [])
            return [(part, slice(piece.start - first, piece.stop - first)) for part, piece in parts]
        found, row = [], 0
        for stored in self.view.experts[fused][int(expert)]:
            count = self.view.infos[stored].shape[0]
            found.append((stored, slice(row, row + count)))
            row += count
        return found

    def _split(self, inputs: Inputs) -> tuple[Inputs, Inputs]:
        """Those that codes are chosen by, and of a GGUF file those that they are judged by."""
        if self.plan.target.format != "gguf" or len(inputs) < 2:
            return inputs, []
        least, count, tokens = len(inputs) - max(1, len(inputs) // HELD_OUT), len(inputs), 0
        while count > least and tokens < JUDGED:
            count -= 1
            tokens += len(inputs[count])
        return _Part(inputs, 0, count), _Part(inputs, count, len(inputs))

    def _factor(self, name: str, inputs: Inputs) -> hessian.Factor:
        try:
            blocks = sequential.BLOCKS if self.plan.target.format == "gguf" else ()
            return hessian.factor(inputs, self.plan.gptq.damp, self.pool, blocks=blocks)
        except WeightError as error:
            raise WeightError(f"{name}: {error}") from error

    def _solve(self, row: Row, weight: F32, factor: hessian.Factor, tokens: int, held: Inputs = ()) -> Callable[[], F32]:
        """Codes of a row's matrix (out, in), packed and spilled; what they stand for is made when it is asked for."""
        weight = np.ascontiguousarray(weight)
        if (bad := first_nonfinite_row(weight)) >= 0:
            raise WeightError(f"{row.name}: row {bad} holds NaN or infinity; the checkpoint is damaged")
        if self.plan.target.format == "gguf":
            return self._solve_stored(row, weight, factor, tokens, held)
        chosen, target = layout.of_type(row.type), self.plan.gptq
        assert chosen is not None
        if (greatest := float(np.abs(weight).max())) > (limit := gptq.limit(chosen.bits)):
            raise WeightError(
                f"{row.name}: a weight of {greatest:g} is beyond {limit:g}, the greatest that a float16 scale of "
                f"{chosen.bits} bits reaches; skip the matrix (rules: skip: true)"
            )
        cost = factor.diagonal / np.float32(max(tokens, 1))
        cost += np.float32(target.damp * float(cost.mean()) or 1.0)
        grid = gptq.fit(weight, cost, bits=chosen.bits, group=chosen.group, symmetric=target.sym, pool=self.pool)
        if tokens < FEW:
            solved = gptq.Solved(grid, gptq.nearest(weight, grid), float("nan"))
        else:
            solved = gptq.solve(weight, grid, factor, self.pool)
        record = Record(
            tokens=tokens,
            damping=factor.damping,
            dead_columns=len(factor.dead),
            loss=solved.loss / hessian.energy(weight, factor, self.pool) if tokens >= FEW else -1.0,
            codes=hashlib.sha256(solved.codes.tobytes()).hexdigest(),
        )
        self.codes.write(row.name, _packed(self.plan, row.name, solved), record)
        return solved.weights

    def _solve_stored(self, row: Row, weight: F32, factor: hessian.Factor, tokens: int, held: Inputs) -> Callable[[], F32]:
        """The same as a GGUF type's bytes; kept only where inputs that were held out say that it is better than the search's
        own codes."""
        codec = codecs()[row.type]
        squares, means = (sums / np.float32(max(tokens, 1)) for sums in (factor.diagonal, factor.sums))
        searched = self._search(codec, weight, squares, means if tokens >= FEW else None)
        best, kept, errors, loss = searched, "search", (-1.0, -1.0), -1.0
        if tokens >= FEW:
            solved, lost = sequential.solve(row.type, weight, searched, factor, self.pool)
            ours, theirs = self._judge(codec, weight, (solved, searched), held)
            errors, loss = (ours, theirs), lost / hessian.energy(weight, factor, self.pool)
            if ours <= theirs:
                best, kept = solved, "gptq"
        record = Record(
            tokens=tokens,
            damping=factor.damping,
            dead_columns=len(factor.dead),
            loss=loss,
            codes=hashlib.sha256(best.tobytes()).hexdigest(),
            kept=kept,
            held_out=errors,
        )
        self.codes.write(row.name, {f"{row.name.removesuffix('.weight')}.bytes": best}, record)
        return partial(codec.decode, best)

    def _search(self, codec: Codec, weight: F32, squares: F32, means: F32 | None) -> U8:
        """The search's own codes, uint8 (rows, row bytes)."""
        slabs = [weight[start : start + SLAB] for start in range(0, len(weight), SLAB)]
        return np.concatenate(list(self.pool.map(lambda slab: codec.encode(slab, squares, means), slabs)))

    def _judge(self, codec: Codec, weight: F32, encoded: Sequence[U8], held: Inputs) -> list[float]:
        """What each of `encoded` errs by on inputs that were held out, relative to the output's energy; by slabs of rows."""
        found = np.zeros(1 + len(encoded))
        for start in range(0, len(weight), SLAB):
            part = slice(start, start + SLAB)
            left = [weight[part] - codec.decode(data[part]) for data in encoded]
            found += hessian.outputs([weight[part], *left], held, self.pool)
        return [float(each) for each in found[1:] / (found[0] or 1.0)]


@dataclass(frozen=True, slots=True)
class FirstCounted:
    """Inputs of whole sequences, one after another, the first token of each scaled so that its square counts SINK times."""

    whole: Inputs

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int, /) -> F32:
        x = self.whole[index].copy()
        x[0] *= np.float32(SINK**0.5)
        return x

    def __iter__(self) -> Iterator[F32]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True)
class _Part:
    """Inputs [start, stop) of others."""

    whole: Inputs
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int, /) -> F32:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.whole[self.start + index]

    def __iter__(self) -> Iterator[F32]:
        return (self[index] for index in range(len(self)))


def _packed(plan: TargetPlan, name: str, solved: gptq.Solved) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that are left on disk of a matrix: those of the checkpoint, or the plain arrays for other formats."""
    if plan.target.format == "gptq":
        return writer.pack(plan.gptq, name, solved)
    arrays: dict[str, np.ndarray[Any, Any]]
    arrays = {"codes": solved.codes, "scales": solved.grid.scales, "zeros": solved.grid.zeros}
    return {f"{name.removesuffix('.weight')}.{part}": array for part, array in arrays.items()}
