"""A checkpoint under the names that transformers' model has: experts fused into one tensor, tensors that moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantkit import arch as architectures
from quantkit import checkpoint
from quantkit.values import F32, TensorInfo, Weights


@dataclass(frozen=True, slots=True)
class ModuleWeights:
    """The weights of `stored` and, beside them, the model's tensors that they hold in other form.

    experts: a fused tensor of the model -> of every expert the stored tensors that make it, one below the other.
    """

    stored: Weights
    infos: Mapping[str, TensorInfo]
    moved: Mapping[str, str]
    experts: Mapping[str, tuple[tuple[str, ...], ...]]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        if name in self.moved:
            return self.stored.read(self.moved[name], start, stop)
        if name not in self.experts or (start, stop) != (0, None):
            return self.stored.read(name, start, stop)
        out = np.empty(self.infos[name].shape, np.float32)
        for expert, parts in enumerate(self.experts[name]):
            row = 0
            for part in parts:
                matrix = self.stored.read(part)
                out[expert, row : row + len(matrix)] = matrix
                row += len(matrix)
        return out

    def close(self) -> None:
        self.stored.close()


def _whole(piece: checkpoint.Piece, infos: Mapping[str, TensorInfo]) -> bool:
    """Whether it is all of its tensor, in the tensor's own shape."""
    shape = infos[piece.name].shape
    return len(shape) < 3 and (piece.start, piece.stop) == (0, shape[0])


def view(config: Mapping[str, Any], weights: Weights) -> ModuleWeights:
    """The view of a checkpoint; of a model_type that has no architecture file, the checkpoint as it is."""
    arch = architectures.get(config)
    infos, moved, experts = dict(weights.infos), dict[str, str](), dict[str, tuple[tuple[str, ...], ...]]()
    if arch is not None and not arch.tensors:
        for name in [name for name in weights.infos if arch.prefix and name.startswith(arch.prefix)]:
            bare = name.removeprefix(arch.prefix)
            if bare not in infos:
                moved[bare], infos[bare] = name, replace(infos[name], name=bare)
    if arch is not None and arch.tensors:
        located = checkpoint.locate(arch, config, weights.infos)
        others = {name: name for name in located if located[name].name != name and _whole(located[name], infos)}
        for name, stored in (*others.items(), *checkpoint.moved(arch, config)):
            if name not in infos and stored in located:
                moved[name] = located[stored].name
                infos[name] = replace(infos[moved[name]], name=name)
        for name, matrices in checkpoint.fused(arch, config).items():
            pieces = {located[part].name for parts in matrices for part in parts if part in located}
            if name not in infos and len(pieces) == 1:  # fused as the model's, without the base model's prefix
                moved[name] = pieces.pop()
                infos[name] = replace(infos[moved[name]], name=name)
            elif name not in infos and all(part in located for parts in matrices for part in parts):
                experts[name] = tuple(tuple(located[part].name for part in parts) for parts in matrices)
                shapes = [infos[part].shape for part in experts[name][0]]
                shape = (len(matrices), sum(rows for rows, _ in shapes), shapes[0][1])
                infos[name] = TensorInfo(name, shape, infos[experts[name][0][0]].dtype, 0)
    return ModuleWeights(weights, infos, moved, experts)
