"""A checkpoint's tensors beside its architecture: where each lies, what is missing, what is redundant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from quantkit import arch as architectures
from quantkit.arch import Architecture
from quantkit.errors import SourceError, UnsupportedError, WeightError
from quantkit.values import TensorInfo

MOST_FAULTS = 40  # named in one message
HEAD = "lm_head.weight"

# Buffers that older checkpoints carry and no runtime reads.
DROPPED = ("*.rotary_emb.inv_freq", "*.attn.masked_bias", "*.attention.masked_bias", "*.attention.bias")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a stored tensor, its leading axes merged."""

    name: str
    start: int
    stop: int


def locate(arch: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Piece]:
    """Where each tensor of `arch.expected` lies: as itself, without the base model's prefix, or inside a fused tensor.

    A tensor that is not there is left out.
    """
    shapes = architectures.expected(arch, config)
    found = {}
    elsewhere: dict[str, list[str]] = {}
    for new, old in moved(arch, config):
        elsewhere.setdefault(old, []).append(new)
    for name, shape in shapes.items():
        tried = (_stored(arch, other, infos) for other in (name, *elsewhere.get(name, ())))
        if (stored := next((found for found in tried if found), None)) is not None:
            found[name] = Piece(stored, 0, math.prod(shape[:-1]) if len(shape) > 1 else shape[0])
    for stored, parts in _fused(arch, config, infos).items():
        row = 0
        for name in parts:
            found.setdefault(name, Piece(stored, row, row + shapes[name][0]))
            row += shapes[name][0]
    return found


def _stored(arch: Architecture, name: str, infos: Mapping[str, TensorInfo]) -> str | None:
    """The name that a tensor has in the checkpoint: with or without the base model's prefix."""
    bare = name.removeprefix(arch.prefix)
    return next((found for found in (name, bare, arch.prefix + name) if found in infos), None)


def moved(arch: Architecture, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name in transformers' model, name in the checkpoint) of the tensors that have two."""
    return [
        (new.format(layer), old.format(layer))
        for new, old in arch.moved.items()
        for layer in range(architectures.layers(arch, config, old))
    ]


def fused(arch: Architecture, config: Mapping[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Name of every tensor that a checkpoint may hold fused -> of every expert the tensors in it, one below the other."""
    found = {}
    for template, parts in arch.fused.items():
        by_part = [architectures.names(arch, config, part) for part in parts]
        for layer in range(architectures.layers(arch, config, template)):
            found[template.format(layer)] = list(zip(*(names[layer] for names in by_part), strict=True))
    return found


def _fused(arch: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Stored name of every fused tensor that is there -> the tensors in it, in order."""
    return {
        stored: [name for parts in matrices for name in parts]
        for template, matrices in fused(arch, config).items()
        if (stored := _stored(arch, template, infos)) is not None
    }


def redundant(arch: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> set[str]:
    """The stored tensors that `arch.expected` does not list and that are known to matter to nothing: old buffers, a tied
    head's copy, another name's copy, and what GGUF has no place for."""
    tied = bool(architectures.standard(arch, config).get("tie_word_embeddings")) and HEAD not in arch.optional
    names = {name for name in infos if (tied and name == HEAD) or any(fnmatchcase(name, p) for p in (*DROPPED, *arch.ignored))}
    if arch.moved:
        others = (_stored(arch, name, infos) for pair in moved(arch, config) for name in pair)
        names |= {name for name in others if name} - {piece.name for piece in locate(arch, config, infos).values()}
    return names


def verify(arch: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> None:
    """Compare a checkpoint's headers with what its config.json says.

    Raises SourceError listing every missing and unexpected tensor and every wrong shape, WeightError if only shapes
    are wrong, UnsupportedError for a config value that the architecture does not compute.
    """
    if not arch.tensors:  # transformers' model will say what is missing
        return
    for key, values in arch.fixed.items():
        if config.get(key, values[0]) not in values:
            raise UnsupportedError(
                f"config.json: {key} = {config[key]!r} is not supported for {arch.model_type}; "
                f"supported: {', '.join(map(repr, values))}"
            )
    wanted, located = architectures.expected(arch, config), locate(arch, config, infos)
    known = {piece.name for piece in located.values()} | redundant(arch, config, infos)
    absent = [name for name in wanted if name not in located and architectures.template_of(arch, name) not in arch.optional]
    lost = [f"missing: {name} {_show(wanted[name])}{_tying(name)}" for name in absent]
    lost += [f"unexpected: {name}" for name in infos if name not in known]
    wrong = [
        f"wrong shape: {stored} is {_show(infos[stored].shape)}, config.json says {_show(shape)} ({origin})"
        for stored, shape, origin in _declared(arch, config, located, infos)
        if infos[stored].shape != shape
    ]
    if lost or wrong:
        kind = SourceError if lost else WeightError
        faults = lost + wrong
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise kind("the weights do not fit config.json:\n  " + "\n  ".join(faults[:MOST_FAULTS] + more))


def _declared(
    arch: Architecture, config: Mapping[str, Any], located: Mapping[str, Piece], infos: Mapping[str, TensorInfo]
) -> list[tuple[str, tuple[int, ...], str]]:
    """Stored name, the shape that config.json gives it, and the config values behind that."""
    wanted = architectures.expected(arch, config)
    fused = _fused(arch, config, infos)
    found = [
        (stored, (_stack(arch, config, parts), sum(wanted[name][0] for name in parts) // _stack(arch, config, parts),
                  wanted[parts[0]][1]), _origin(arch, config, parts[0]))
        for stored, parts in fused.items()
    ]  # fmt: skip
    plain = ((name, piece.name) for name, piece in located.items() if piece.name not in fused)
    return found + [(stored, wanted[name], _origin(arch, config, name)) for name, stored in plain]


def _stack(arch: Architecture, config: Mapping[str, Any], parts: list[str]) -> int:
    return architectures.dims(arch, config)[arch.stacked[architectures.template_of(arch, parts[0])]]


def _tying(name: str) -> str:
    return " (is tie_word_embeddings meant to be true?)" if name == HEAD else ""


def _show(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


_ORIGINS = {
    "hidden": ("hidden_size",),
    "intermediate": ("intermediate_size",),
    "gate_up": ("intermediate_size",),
    "vocab": ("vocab_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "hidden_size", "num_attention_heads"),
    "q_width": ("num_attention_heads", "head_dim", "hidden_size"),
    "kv_width": ("num_key_value_heads", "head_dim", "hidden_size"),
    "qkv_width": ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"),
    "expert_intermediate": ("moe_intermediate_size", "intermediate_size"),
    "positions": ("max_position_embeddings",),
    "token_types": ("type_vocab_size",),
    "buckets": ("relative_attention_num_buckets",),
    "experts": ("num_experts",),
}


def _origin(arch: Architecture, config: Mapping[str, Any], name: str) -> str:
    """The config values behind a tensor's shape, e.g. "vocab_size = 32000, hidden_size = 4096"."""
    standard = dict.fromkeys(
        key for dim in arch.tensors[architectures.template_of(arch, name)] for key in _ORIGINS.get(dim, ())
    )
    own = [arch.keys.get(key, key) for key in standard]
    return ", ".join(f"{key} = {config.get(key)}" for key in own)
