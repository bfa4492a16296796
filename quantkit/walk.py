"""The model, block by block, in the memory of one block.

The model is built on the meta device and its own forward is called once over the whole batch. Each decoder layer is a
stage: it reads its own weights, runs the batch in micro-batches, and goes back to meta. Masks, rotary positions,
sliding windows and the kinds of layers come from the model's own code, so that no architecture needs a file here.

Peak memory is one layer in float32, a layer's input and output for the whole batch, and what one micro-batch per thread
needs. What micro-batches leave is put into the batch's own tensor at once: kept apart, small tensors would pin the memory that
their threads have freed.
Threads run micro-batches, never parts of one product, and observers see them in order: results do not depend on their
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit import matrices, memory, modules, skeleton, staging
from quantkit.errors import WeightError
from quantkit.staging import Replace
from quantkit.values import F32, Progress, Weights

if TYPE_CHECKING:
    import torch

Observe = Callable[[str, F32], None]
"""observe(weight, x): the input (tokens, width) that a matrix of a decoder layer meets, micro-batch by micro-batch; of an
expert of a fused tensor as "weight[3]", with the tokens that it gets. Called from one thread, in an order that does not
depend on the number of threads."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Sequences [rows.start, rows.stop) of the batch, for which `replace` replaces every matrix of a layer, knowing what it
    meets. Lanes follow each other and end the batch."""

    rows: slice
    replace: Replace


Tokens = NDArray[np.int32] | NDArray[np.int64]


def walk(
    config: Mapping[str, Any],
    weights: Weights,
    sequences: Tokens,
    *,
    decoder_sequences: Tokens | None = None,
    threads: int,
    micro_batch: int = 1,
    observe: Observe | None = None,
    lanes: Sequence[Lane] = (),
    narrow: bool = False,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> F32:
    """Final hidden states (n, length, width), after the last norm, of token `sequences` (n, length).

    decoder_sequences: what an encoder-decoder's decoder is given (n, its length); the states are then the decoder's.
    micro_batch: sequences that one thread runs through a layer together.
    observe: sees what the sequences outside of lanes meet. lanes: sequences whose weights are replaced layer by layer; the
    others go through the checkpoint's. narrow: hidden states between layers, and inputs that wait in a lane, are bfloat16.
    keep: a file for the last layer's output, from which a walk that was stopped goes on; the caller names it after everything
    that decides the states, and has what `replace` made of the layers before.
    config: a Hugging Face config.json. Raises UnsupportedError for a model_type unknown to transformers, and
    WeightError for a tensor that the model needs and the checkpoint lacks or holds in another shape.
    """
    import torch

    memory.return_large_blocks()
    weights = modules.view(config, weights)
    model = skeleton.build(config, "AutoModelForCausalLM" if skeleton.kind(config) == "decoder" else "AutoModel")
    base = model.base_model
    stacks, tables = skeleton.stacks(base), skeleton.tables(base)
    names = {id(module): name for name, module in model.named_modules()}
    for table in tables:
        table.forward = partial(
            _embed, table, table.forward, weights, skeleton.tied(model, f"{names[id(table)]}.weight", weights)
        )
    apart = tuple(f"{names[id(module)]}." for module in (*stacks, *tables))
    prefix = f"{names[id(base)]}." if names[id(base)] else ""
    rest = [name for name in base.state_dict() if not f"{prefix}{name}".startswith(apart)]
    layers = [layer for stack in stacks for layer in stack]
    with skeleton.torch_threads(1), torch.no_grad(), ThreadPoolExecutor(threads) as pool:
        run = _Run(weights, pool, threads, micro_batch, observe, lanes, narrow, keep, _kept(keep))
        for index, layer in enumerate(layers):
            report = partial(progress, "walk", index + 1, len(layers)) if progress is not None else None
            last = any(layer is stack[-1] for stack in stacks)
            layer.forward = partial(_stage, run, _Layer(layer, layer.forward, f"{names[id(layer)]}.", index, last, report))
        base.load_state_dict(skeleton.tensors(base, rest, weights, prefix), strict=False, assign=True)
        given = {"input_ids": sequences, "decoder_input_ids": decoder_sequences}
        tokens = {name: torch.from_numpy(np.asarray(ids, np.int64)) for name, ids in given.items() if ids is not None}
        hidden: F32 = base(**tokens, use_cache=False).last_hidden_state.numpy()
    return hidden


@dataclass(frozen=True, slots=True)
class _Run:
    weights: Weights
    pool: Executor
    threads: int
    micro_batch: int
    observe: Observe | None
    lanes: Sequence[Lane]
    narrow: bool
    keep: Path | None
    kept: tuple[int, Any]  # the last layer of an earlier walk and its output; -1 and None


@dataclass(frozen=True, slots=True)
class _Layer:
    module: Any
    forward: Callable[..., Any]
    prefix: str
    index: int
    last: bool
    report: Callable[[], None] | None


def _stage(run: _Run, layer: _Layer, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """One layer over the whole batch, its weights present only meanwhile."""
    done, kept = run.kept
    if layer.index <= done:
        if layer.index == done:
            return kept
        return (hidden, *kept[1:]) if isinstance(kept, tuple) else hidden
    batch, empty = hidden.shape[0], layer.module.state_dict()

    def call(part: slice, meet: staging.Meet | None) -> Any:
        import torch

        positional, named = _split((hidden, *args), batch, part), _split(kwargs, batch, part)
        matrices.meeting.meet = meet
        with torch.no_grad(), matrices.watch_experts(experts) if meet is not None else nullcontext():  # for one thread only
            return layer.forward(positional[0].float(), *positional[1:], **named)

    output: Any = None
    plain = min((lane.rows.start for lane in run.lanes), default=batch)
    for lane in (None, *run.lanes):
        rows = lane.rows if lane else slice(0, plain)
        parts = [slice(at, min(at + run.micro_batch, rows.stop)) for at in range(rows.start, rows.stop, run.micro_batch)]
        if not parts:
            continue
        _load(layer, empty, run.weights)
        experts = matrices.experts(layer.module, layer.prefix)
        hooks = matrices.watch(layer.module, layer.prefix) if lane or run.observe else []
        pieces = _replaced(run, layer, lane, parts, call) if lane else _observed(run, parts, call)
        for part, piece in zip(parts, pieces, strict=True):
            output = _room(piece, batch, run.narrow and not layer.last) if output is None else output
            _put(output, part, piece)
        del pieces
        for hook in hooks:
            hook.remove()
    layer.module.load_state_dict(empty, assign=True)
    if run.keep is not None:
        _keep(run.keep, layer.index, output)
    memory.release()
    if layer.report is not None:
        layer.report()
    return output


def _load(layer: _Layer, names: Mapping[str, Any], weights: Weights) -> None:
    layer.module.load_state_dict(skeleton.tensors(layer.module, list(names), weights, layer.prefix), assign=True)


def _observed(run: _Run, parts: Sequence[slice], call: Callable[[slice, staging.Meet | None], Any]) -> Iterator[Any]:
    """Outputs of micro-batches under the weights as they are, what they met shown to the observer in order."""

    def one(part: slice) -> tuple[Any, list[tuple[str, F32]]]:
        seen: list[tuple[str, F32]] = []

        def meet(name: str, x: torch.Tensor) -> None:
            seen.append((name, x.reshape(-1, x.shape[-1]).numpy()))

        return call(part, meet if run.observe else None), seen

    for start in range(0, len(parts), run.threads):  # no more at a time: what was seen is held until it is observed
        for piece, seen in run.pool.map(one, parts[start : start + run.threads]):
            if run.observe is not None:
                for name, x in seen:
                    run.observe(name, x)
            yield piece


def _replaced(
    run: _Run, layer: _Layer, lane: Lane, parts: Sequence[slice], call: Callable[[slice, staging.Meet | None], Any]
) -> list[Any]:
    """Outputs of a lane's micro-batches, every matrix replaced before it is used."""
    experts = list(matrices.experts(layer.module, layer.prefix).values())

    def get(name: str) -> F32:
        return matrices.weight(layer.module, layer.prefix, name).numpy().copy()

    def put(name: str, weights: F32) -> None:
        matrices.weight(layer.module, layer.prefix, name).copy_(torch.from_numpy(weights))

    import torch

    groups = staging.sharing(partial(call, parts[0]))
    with torch.no_grad():
        return staging.run(
            [partial(call, part) for part in parts],
            groups,
            lane.replace,
            get,
            put,
            order=matrices.order(groups, experts),
            narrow=run.narrow,
            threads=run.threads,
        )


def _keep(path: Path, index: int, output: Any) -> None:
    """Save a layer's output in the place of the last one's, at once."""
    import torch

    temporary = path.with_name(f"{path.name}.partial")
    torch.save({"layer": index, "output": output}, temporary)
    temporary.replace(path)


def _kept(path: Path | None) -> tuple[int, Any]:
    import torch

    if path is None or not path.is_file():
        return -1, None
    found = torch.load(path, weights_only=True)
    return found["layer"], found["output"]


def _split(value: Any, batch: int, part: slice) -> Any:
    """The micro-batch of a layer's argument: tensors with the batch first are cut, all else is passed on.

    A vector is never cut: what a layer gets per sequence has at least two axes, while positions may happen to be as
    long as the batch.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value[part] if value.ndim > 1 and value.shape[0] == batch else value
    if type(value) in (tuple, list):
        return type(value)(_split(item, batch, part) for item in value)
    if type(value) is dict:
        return {key: _split(item, batch, part) for key, item in value.items()}
    return value


def _room(piece: Any, batch: int, narrow: bool) -> Any:
    """For the outputs of a whole batch, of which `piece` is a micro-batch's: a tensor, or a tuple with the hidden states first,
    whose other items are alike for all sequences (T5's position bias): of them one sequence's is kept."""
    import torch

    if isinstance(piece, tuple):
        rest = (item[:1] if isinstance(item, torch.Tensor) else item for item in piece[1:])
        return (_room(piece[0], batch, narrow), *rest)
    return torch.empty((batch, *piece.shape[1:]), dtype=torch.bfloat16 if narrow else piece.dtype)


def _put(output: Any, part: slice, piece: Any) -> None:
    states, new = (output[0], piece[0]) if isinstance(piece, tuple) else (output, piece)
    states[part] = new


def _embed(embedding: Any, forward: Callable[..., Any], weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    """Runs the embedding on a table of only those rows that `tokens` meets."""
    import torch

    met, index = torch.unique(tokens, return_inverse=True)
    rows, wanted = np.empty((len(met), embedding.weight.shape[1]), np.float32), met.numpy()
    if wanted[0] < 0 or wanted[-1] >= embedding.weight.shape[0]:
        raise WeightError(
            f"token ids {wanted[0]} to {wanted[-1]} do not fit {name} with {embedding.weight.shape[0]} rows: "
            "tokenizer and checkpoint do not belong together"
        )
    for start, slab in skeleton.slabs(weights, name, tuple(embedding.weight.shape))():
        here = slice(*np.searchsorted(wanted, (start, start + len(slab))))
        rows[here] = slab[wanted[here] - start]
        del slab  # before the next is read
    embedding.padding_idx = None  # matters to gradients only, and is no index into these rows
    empty = embedding.weight
    embedding.weight = torch.nn.Parameter(torch.from_numpy(rows), requires_grad=False)
    found: torch.Tensor = forward(index)
    embedding.weight = empty
    return found
