"""The model, block by block, in the memory of one block.

The model is built on the meta device and its own forward is called once over the whole batch. Each decoder layer is a
stage: it reads its own weights, runs the batch in micro-batches, and goes back to meta. Masks, rotary positions,
sliding windows and the kinds of layers come from the model's own code, so that no architecture needs a file here.

Peak memory is one layer in float32, a few copies of the hidden states, and what one micro-batch per thread needs.
Threads run micro-batches, never parts of one product, and observers see them in order: results do not depend on their
number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit import modules, skeleton
from quantkit.errors import WeightError
from quantkit.values import F32, Progress, Weights

if TYPE_CHECKING:
    import torch

Observe = Callable[[str, F32], None]
"""observe(weight, x): the input (tokens, width) that a matrix of a decoder layer meets, micro-batch by micro-batch; of an
expert of a fused tensor as "weight[3]", with the tokens that it gets. Called from one thread, in an order that does not
depend on the number of threads."""

Tokens = NDArray[np.int32] | NDArray[np.int64]

_micro = threading.local()  # .seen: what the micro-batch that a thread runs has shown to the observer


def walk(
    config: Mapping[str, Any],
    weights: Weights,
    sequences: Tokens,
    *,
    decoder_sequences: Tokens | None = None,
    threads: int,
    micro_batch: int = 1,
    observe: Observe | None = None,
    progress: Progress | None = None,
) -> F32:
    """Final hidden states (n, length, width), after the last norm, of token `sequences` (n, length).

    decoder_sequences: what an encoder-decoder's decoder is given (n, its length); the states are then the decoder's.
    micro_batch: sequences that one thread runs through a layer together.
    config: a Hugging Face config.json. Raises UnsupportedError for a model_type unknown to transformers, and
    WeightError for a tensor that the model needs and the checkpoint lacks or holds in another shape.
    """
    import torch

    weights = modules.view(config, weights)
    model = skeleton.build(config, "AutoModelForCausalLM" if skeleton.kind(config) == "decoder" else "AutoModel")
    base = model.base_model
    stacks, tables = skeleton.stacks(base), skeleton.tables(base)
    names = {id(module): name for name, module in model.named_modules()}
    for table in tables:
        table.forward = partial(_embed, table, table.forward, weights, f"{names[id(table)]}.weight")
    apart = tuple(f"{names[id(module)]}." for module in (*stacks, *tables))
    prefix = f"{names[id(base)]}." if names[id(base)] else ""
    rest = [name for name in base.state_dict() if not f"{prefix}{name}".startswith(apart)]
    layers = [layer for stack in stacks for layer in stack]
    with skeleton.torch_threads(1), torch.no_grad(), ThreadPoolExecutor(threads) as pool:
        run = _Run(weights, pool, threads, micro_batch, observe)
        for index, layer in enumerate(layers):
            report = partial(progress, "walk", index + 1, len(layers)) if progress is not None else None
            layer.forward = partial(_stage, run, layer, layer.forward, f"{names[id(layer)]}.", report)
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


def _stage(
    run: _Run,
    layer: Any,
    forward: Callable[..., Any],
    prefix: str,
    report: Callable[[], None] | None,
    hidden: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """One decoder layer over the whole batch, its weights present only meanwhile."""
    import torch

    batch, empty = hidden.shape[0], layer.state_dict()
    layer.load_state_dict(skeleton.tensors(layer, list(empty), run.weights, prefix), assign=True)
    hooks = _watch(layer, prefix) if run.observe is not None else []
    watching = partial(_watch_experts, _experts(layer, prefix)) if run.observe is not None else nullcontext

    def one(part: slice) -> tuple[Any, list[tuple[str, F32]]]:
        _micro.seen = []
        positional, named = _split((hidden, *args), batch, part), _split(kwargs, batch, part)
        with torch.no_grad(), watching():  # both hold for one thread only
            return forward(*positional, **named), _micro.seen

    parts = [slice(start, start + run.micro_batch) for start in range(0, batch, run.micro_batch)]
    pieces = []
    for start in range(0, len(parts), run.threads):  # no more at a time: what was seen is held until it is observed
        for piece, seen in run.pool.map(one, parts[start : start + run.threads]):
            pieces.append(piece)
            if run.observe is not None:
                for name, x in seen:
                    run.observe(name, x)
    for hook in hooks:
        hook.remove()
    layer.load_state_dict(empty, assign=True)
    if report is not None:
        report()
    return _join(pieces)


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


def _join(pieces: list[Any]) -> Any:
    """The batch's output from its micro-batches': a tensor, or a tuple with the hidden states first, whose other items are
    alike for all sequences (T5's position bias): of them one sequence's is kept."""
    import torch

    if isinstance(pieces[0], tuple):
        rest = (item[:1] if isinstance(item, torch.Tensor) else item for item in pieces[0][1:])
        return (torch.cat([piece[0] for piece in pieces]), *rest)
    return torch.cat(pieces)


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
    embedding.padding_idx = None  # matters to gradients only, and is no index into these rows
    empty = embedding.weight
    embedding.weight = torch.nn.Parameter(torch.from_numpy(rows), requires_grad=False)
    found: torch.Tensor = forward(index)
    embedding.weight = empty
    return found


def _watch(layer: Any, prefix: str) -> list[Any]:
    import torch

    def see(name: str, _: Any, inputs: tuple[Any, ...]) -> None:
        _micro.seen.append((name, inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()))

    matrices = [(name, m) for name, m in layer.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    return [
        matrix.register_forward_pre_hook(partial(see, f"{prefix}{name}.weight"))
        for name, matrix in matrices
        if not isinstance(matrix, torch.nn.Embedding)  # T5's position bias: it meets no activations
    ]


def _experts(layer: Any, prefix: str) -> dict[int, str]:
    """Address of every expert's matrix -> its name: "mlp.experts.gate_up_proj[3]"."""
    stacks = [(name, parameter) for name, parameter in layer.named_parameters() if parameter.ndim == 3]
    return {stack[expert].data_ptr(): f"{prefix}{name}[{expert}]" for name, stack in stacks for expert in range(stack.shape[0])}


def _watch_experts(names: Mapping[int, str]) -> Any:
    """A context in which products with an expert's matrix are seen; the model's code takes them out of one tensor."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if func is torch.nn.functional.linear and args[1].data_ptr() in names:
                x = args[0].reshape(-1, args[0].shape[-1])
                _micro.seen.append((names[args[1].data_ptr()], x.numpy()))
            return func(*args, **(kwargs or {}))

    return Watch() if names else nullcontext()
