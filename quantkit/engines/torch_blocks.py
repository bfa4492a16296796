"""A weight-only artefact in torch, block by block, from its dequantised weights: any of them runs on any machine, slowly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from quantkit import heads, walk
from quantkit.values import F32, Progress, Weights
from quantkit.walk import Tokens


def name() -> str:
    """The engine with its version, as every figure carries it."""
    return f"quantkit torch_blocks (torch {version('torch')})"


def logits(
    config: Mapping[str, Any], weights: Weights, sequences: Tokens, *, threads: int, progress: Progress | None = None
) -> Callable[[int], F32]:
    """The artefact's logits (length, vocabulary) for each of `sequences` (n, length), by its number. Errors as of walk.walk."""
    hidden = walk.walk(config, weights, sequences, threads=threads, progress=progress)
    project = heads.project(config, weights, threads=threads)
    return lambda index: project(hidden[index])
