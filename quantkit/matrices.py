"""The matrices of a layer: their names, their weights in the model, and what meets them.

An expert's matrix is a slice of a fused parameter, "mlp.experts.gate_up_proj[3]": the model's code takes it out of there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

meeting = threading.local()  # .meet: whom the micro-batch that a thread runs tells what a matrix meets, or None


def _modules(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Modules that multiply by a matrix, by its name; T5's position bias is a table that meets no activations."""
    import torch

    for name, module in layer.named_modules():
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, torch.nn.Embedding):
            yield f"{prefix}{name}.weight", module


def watch(layer: Any, prefix: str) -> list[Any]:
    """Hooks that tell `meeting.meet` of every matrix and its input; to be removed by the caller."""

    def see(name: str, _: Any, inputs: tuple[Any, ...]) -> None:
        if meeting.meet is not None:
            meeting.meet(name, inputs[0])

    return [module.register_forward_pre_hook(partial(see, name)) for name, module in _modules(layer, prefix)]


def experts(layer: Any, prefix: str) -> dict[int, str]:
    """Address of every expert's matrix -> its name: "mlp.experts.gate_up_proj[3]"."""
    stacks = [(name, parameter) for name, parameter in layer.named_parameters() if parameter.ndim == 3]
    return {stack[expert].data_ptr(): f"{prefix}{name}[{expert}]" for name, stack in stacks for expert in range(stack.shape[0])}


def watch_experts(names: Mapping[int, str]) -> Any:
    """A context in which products with an expert's matrix are seen; the model's code takes them out of one tensor."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if func is torch.nn.functional.linear and args[1].data_ptr() in names:
                meeting.meet(names[args[1].data_ptr()], args[0])
            return func(*args, **(kwargs or {}))

    return Watch() if names else nullcontext()


def order(met: Iterable[str], experts: Sequence[str]) -> Callable[[str], tuple[int, int, int]]:
    """Where a matrix stands in the layer, by what one micro-batch met; experts go one after the other, whichever it met."""
    stems = dict.fromkeys(name.partition("[")[0] for name in met)
    stacks = [stem for stem in stems if any(name.startswith(f"{stem}[") for name in experts)]
    stacks += [stem for stem in dict.fromkeys(name.partition("[")[0] for name in experts) if stem not in stacks]
    plain = {stem: index for index, stem in enumerate(stems)}
    first = min((plain[stem] for stem in stacks if stem in plain), default=len(plain))

    def place(name: str) -> tuple[int, int, int]:
        stem, _, expert = name.rstrip("]").partition("[")
        return (first, int(expert), stacks.index(stem)) if expert else (plain.get(stem, len(plain)), 0, 0)

    return place


def weight(layer: Any, prefix: str, name: str) -> torch.Tensor:
    """A matrix of the layer as (out, in), sharing the model's memory."""
    from transformers.pytorch_utils import Conv1D

    local = name.removeprefix(prefix)
    if local.endswith("]"):
        stack, _, expert = local.rstrip("]").rpartition("[")
        found: torch.Tensor = layer.get_parameter(stack).data[int(expert)]
        return found
    module = layer.get_submodule(local.removesuffix(".weight"))
    held: torch.Tensor = module.weight.data
    return held.T if isinstance(module, Conv1D) else held
