"""Parameters that are not there: a model of them becomes a graph without a weight being read.

What a graph's builder does to such a parameter (transpose, concatenate, add an offset) is recorded, and done when the tensor is
written, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from quantkit import skeleton
from quantkit.modules import ModuleWeights
from quantkit.values import F32


@dataclass(frozen=True, slots=True)
class Deferred:
    """A tensor of a graph that is made when it is asked for. sources: the checkpoint's tensors that it is made of."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    make: Callable[[], F32]


def record(model: Any, view: ModuleWeights) -> None:
    """Put a recorded parameter in the place of each of a model on the meta device. Raises WeightError for one that the
    checkpoint lacks or holds in another shape."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_map

    class Recorded(torch.Tensor):
        deferred: Deferred
        shadow: torch.Tensor  # on the meta device: its shape and type

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            del types
            given = (args, kwargs or {})
            parts = [part for part in tree_flatten(given)[0] if isinstance(part, Recorded)]
            shadows, options = tree_map(_shadow, given)
            if func is torch.ops.aten._local_scalar_dense.default:  # "is this bias all zeros?": taken not to be
                return 1
            sources = dict.fromkeys(name for part in parts for name in part.deferred.sources)

            def make() -> F32:
                with torch.no_grad():
                    values, others = tree_map(_made, given)
                    found: F32 = func(*values, **others).numpy()
                return found

            return wrap(func(*shadows, **options), tuple(sources), make)

    def _shadow(part: Any) -> Any:
        if isinstance(part, Recorded):
            return part.shadow
        return part.to("meta") if isinstance(part, torch.Tensor) else part

    def _made(part: Any) -> Any:
        return torch.from_numpy(part.deferred.make()) if isinstance(part, Recorded) else part

    def wrap(shadow: torch.Tensor, sources: tuple[str, ...], make: Callable[[], F32]) -> Any:
        found = torch.Tensor._make_wrapper_subclass(Recorded, shadow.shape, dtype=shadow.dtype)
        found.shadow, found.deferred = shadow, Deferred(tuple(shadow.shape), sources, make)
        return found

    model.tie_weights()  # which the meta device undid
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made: dict[int, Any] = {}
    for module in model.modules():
        for local, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                shape = tuple(parameter.shape)
                stored = skeleton.stored(view, names[id(parameter)], shape)
                recorded = wrap(torch.empty(shape, device="meta"), (stored,), partial(view.read, stored))
                made[id(parameter)] = torch.nn.Parameter(recorded, requires_grad=False)
            if parameter is not None:
                module._parameters[local] = made[id(parameter)]


def of(tensor: Any) -> Deferred | None:
    """What an onnx_ir tensor of a recorded one stands for; None for one that holds its values."""
    raw = getattr(tensor, "raw", None)
    if callable(raw) and not hasattr(raw, "shape"):  # lazy: of a tensor yet to be made
        return of(raw())
    found: Deferred | None = getattr(raw, "deferred", None)
    return found


def of_values(values: np.ndarray[Any, Any]) -> Deferred:
    """Values that are there already."""
    return Deferred(values.shape, (), lambda: values)
