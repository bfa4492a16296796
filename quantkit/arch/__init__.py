"""Architectures: one file per model_type, data only. What a checkpoint must hold, and how GGUF stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from quantkit import plugins
from quantkit.errors import SourceError, UnsupportedError, WeightError
from quantkit.values import TensorInfo


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder as Hugging Face names it and as GGUF stores it.

    tensors:  name template ("model.layers.{}.mlp.up_proj.weight") -> names of its dimensions, rows first (see `dims`).
    when:     templates that exist only if config[key] has this truth value.
    permuted: templates whose rows GGUF interleaves within each head (rotary halves to pairs) -> the config key that
              counts those heads.
    fixed:    config keys that the GGUF graph takes for granted -> the values it computes (a missing key is the first).
    """

    model_type: str
    model_class: str
    gguf: str
    tensors: Mapping[str, tuple[str, ...]]
    when: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    permuted: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


MOST_LAYERS = 4096  # beyond it config.json is damaged, and listing the tensors would not end

# Buffers that older checkpoints carry and no runtime reads.
DROPPED = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias", ".attention.bias")


@cache
def known() -> MappingProxyType[str, Architecture]:
    """Every architecture by model_type."""
    found = plugins.load(__name__, Architecture, "ARCH")
    return MappingProxyType({value.model_type: value for value in found.values()})


def find(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a parsed config.json. Raises UnsupportedError."""
    model_type = str(config.get("model_type"))
    if model_type not in known():
        raise UnsupportedError(f"config.json: model_type {model_type!r} is not supported; supported: {', '.join(known())}")
    return known()[model_type]


def find_gguf(name: str) -> Architecture:
    """The architecture of a GGUF's general.architecture; of several that share it, the one it is named after."""
    sharing = [value for value in known().values() if value.gguf == name]
    if not sharing:
        supported = ", ".join(sorted({value.gguf for value in known().values()}))
        raise UnsupportedError(f"general.architecture {name!r} is not supported; supported: {supported}")
    return min(sharing, key=lambda value: value.model_type != name)


def dims(arch: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    """The lengths of the named dimensions of `arch.tensors`. Raises SourceError for a missing or impossible value."""
    required = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    optional = ("num_key_value_heads", "head_dim", "max_position_embeddings")
    given = (*required, *(key for key in optional if config.get(key) is not None))
    bad = [f"{key} = {config.get(key)!r}" for key in given if not _positive(config.get(key))]
    if bad:
        raise SourceError(f"config.json ({arch.model_type}): these must be positive whole numbers: {', '.join(bad)}")
    if config["num_hidden_layers"] > MOST_LAYERS:
        raise SourceError(f"config.json ({arch.model_type}): num_hidden_layers = {config['num_hidden_layers']} cannot be")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    return {
        "hidden": hidden,
        "intermediate": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "head_dim": head_dim,
        "q_width": heads * head_dim,
        "kv_width": kv_heads * head_dim,
    }


def _positive(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 32


def templates(arch: Architecture, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The name templates that a checkpoint with this config.json has."""
    return tuple(
        template
        for template in arch.tensors
        if template not in arch.when or bool(config.get(arch.when[template][0])) == arch.when[template][1]
    )


def names(template: str, layers: int) -> tuple[str, ...]:
    """A template's names: one per layer, or itself."""
    return tuple(template.format(layer) for layer in range(layers)) if "{}" in template else (template,)


def expected(arch: Architecture, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape (rows first) of every tensor that a checkpoint with this config.json must have."""
    lengths = dims(arch, config)
    return {
        name: tuple(lengths[dim] for dim in arch.tensors[template])
        for template in templates(arch, config)
        for name in names(template, config["num_hidden_layers"])
    }


def dropped(arch: Architecture, config: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor that `expected` does not list is known to be redundant: an old buffer, or a tied head's copy."""
    tied = name == "lm_head.weight" and bool(config.get("tie_word_embeddings")) and name in arch.tensors
    return tied or name.endswith(DROPPED)


def verify(arch: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> None:
    """Compare a checkpoint's headers with what its config.json says.

    Raises SourceError listing every missing and unexpected tensor and every wrong shape, WeightError if only shapes
    are wrong, UnsupportedError for a config value that the architecture does not compute.
    """
    for key, values in arch.fixed.items():
        if config.get(key, values[0]) not in values:
            raise UnsupportedError(
                f"config.json: {key} = {config[key]!r} is not supported for {arch.model_type}; "
                f"supported: {', '.join(map(repr, values))}"
            )
    wanted = expected(arch, config)
    lost = [f"missing: {name} {_show(shape)}{_tying(name)}" for name, shape in wanted.items() if name not in infos]
    lost += [f"unexpected: {name}" for name in infos if name not in wanted and not dropped(arch, config, name)]
    wrong = [
        f"wrong shape: {name} is {_show(infos[name].shape)}, config.json says {_show(shape)} ({_origin(arch, config, name)})"
        for name, shape in wanted.items()
        if name in infos and infos[name].shape != shape
    ]
    if lost or wrong:
        kind = SourceError if lost else WeightError
        raise kind("the weights do not fit config.json:\n  " + "\n  ".join(lost + wrong))


def _tying(name: str) -> str:
    return " (is tie_word_embeddings meant to be true?)" if name == "lm_head.weight" else ""


def _show(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


_ORIGINS = {
    "hidden": ("hidden_size",),
    "intermediate": ("intermediate_size",),
    "vocab": ("vocab_size",),
    "head_dim": ("head_dim", "hidden_size", "num_attention_heads"),
    "q_width": ("num_attention_heads", "head_dim", "hidden_size"),
    "kv_width": ("num_key_value_heads", "head_dim", "hidden_size"),
}


def _origin(arch: Architecture, config: Mapping[str, Any], name: str) -> str:
    """The config values behind a tensor's shape, e.g. "vocab_size = 32000, hidden_size = 4096"."""
    layers = config["num_hidden_layers"]
    template = next(template for template in arch.tensors if name in names(template, layers))
    keys = dict.fromkeys(key for dim in arch.tensors[template] for key in _ORIGINS[dim])
    return ", ".join(f"{key} = {config.get(key)}" for key in keys)
