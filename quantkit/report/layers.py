"""Relative errors of an artefact's tensors by what they are and the block they are in, whatever the format calls them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.manifest import TargetRecord

_NUMBERED = re.compile(r"(?:(?P<stack>.*?)\.)?(?P<block>\d+)\.(?P<role>.+)")


@dataclass(frozen=True, slots=True)
class Role:
    """What the tensors of one role lose over the blocks."""

    role: str
    mean: float
    greatest: float
    block: int  # that of the greatest


def errors(target: TargetRecord) -> dict[tuple[str, int], float]:
    """(role, block) -> relative error, roles in the order of the file; of experts the greatest. Roles without any error, as
    norms in float32 are, are left out.

    A role is a name without its block's number: attn_q of blk.3.attn_q.weight, mlp.up_proj of model.layers.3.mlp.up_proj.
    """
    found: dict[tuple[str, int], float] = {}
    stacks = {stack for tensor in target.tensors if (stack := _place(tensor.name)[0])}
    for tensor in target.tensors:
        stack, block, role = _place(tensor.name)
        if block is None or tensor.relative_error is None or not math.isfinite(tensor.relative_error):
            continue
        name = role if len(stacks) < 2 else f"{stack}: {role}"
        found[name, block] = max(found.get((name, block), 0.0), tensor.relative_error)
    lossy = {role for (role, _), error in found.items() if error > 0}
    return {key: error for key, error in found.items() if key[0] in lossy}


def roles(found: Mapping[tuple[str, int], float]) -> list[Role]:
    """`errors`, summed up role by role, the worst mean first."""
    groups: dict[str, dict[int, float]] = {}
    for (role, block), error in found.items():
        groups.setdefault(role, {})[block] = error
    summed = [
        Role(role, sum(blocks.values()) / len(blocks), max(blocks.values()), max(blocks, key=blocks.__getitem__))
        for role, blocks in groups.items()
    ]
    return sorted(summed, key=lambda role: -role.mean)


def _place(name: str) -> tuple[str, int | None, str]:
    """Stack, block and role of a tensor's name; no block for one that stands alone."""
    match = _NUMBERED.match(name)
    if match is None:
        return "", None, name
    stack = (match["stack"] or "").removeprefix("model.").split(".")[0]
    role = re.sub(r"\.\d+(?=\.|$)", ".*", match["role"].removesuffix(".weight"))
    return stack, int(match["block"]), role
