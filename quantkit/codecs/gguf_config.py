"""Hyper-parameters: config.json <-> the GGUF pairs under "<architecture>.", as llama.cpp's converter writes them.

Nothing is ignored silently: what one side cannot say to the other is an UnsupportedError naming key and value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantkit import arch as architectures
from quantkit.arch import Architecture
from quantkit.codecs.gguf_kv import KeyValue, require, shortest
from quantkit.codecs.gguf_names import ROPE_FREQS
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import F32

# GGUF key (after "<architecture>.") -> config.json key, kind; both directions read this.
_TABLE = {
    "block_count": ("num_hidden_layers", "UINT32"),
    "context_length": ("max_position_embeddings", "UINT32"),
    "embedding_length": ("hidden_size", "UINT32"),
    "feed_forward_length": ("intermediate_size", "UINT32"),
    "attention.head_count": ("num_attention_heads", "UINT32"),
    "attention.head_count_kv": ("num_key_value_heads", "UINT32"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "FLOAT32"),
    "vocab_size": ("vocab_size", "UINT32"),
}
# GGUF key -> key of rope_parameters, kind, for the scaling types that llama.cpp computes from numbers alone.
_SCALING = {
    "linear": {"rope.scaling.factor": ("factor", "FLOAT32")},
    "yarn": {
        "rope.scaling.factor": ("factor", "FLOAT32"),
        "rope.scaling.original_context_length": ("original_max_position_embeddings", "UINT32"),
        "rope.scaling.yarn_beta_fast": ("beta_fast", "FLOAT32"),
        "rope.scaling.yarn_beta_slow": ("beta_slow", "FLOAT32"),
    },
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_HANDLED = {  # by code rather than by table; scaling.finetuned is a note that no graph reads
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.finetuned",
    "attention.key_length", "attention.value_length",
}  # fmt: skip
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}  # of transformers' LlamaConfig
_TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def encode(arch: Architecture, config: Mapping[str, Any]) -> list[KeyValue]:
    """The pairs under "<architecture>." for a parsed config.json. Raises UnsupportedError, SourceError."""
    lengths = architectures.dims(arch, config)
    full = {**_DEFAULTS, "num_key_value_heads": config["num_attention_heads"], **_given(config)}
    full["max_position_embeddings"] = context_length(config)
    scale = rope(config)
    pairs = [KeyValue(f"{arch.gguf}.{key}", full[name], kind) for key, (name, kind) in _TABLE.items()]
    pairs.append(KeyValue(f"{arch.gguf}.rope.dimension_count", lengths["head_dim"], "UINT32"))
    pairs.append(KeyValue(f"{arch.gguf}.rope.freq_base", float(scale["rope_theta"]), "FLOAT32"))
    if lengths["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        for part in ("key", "value"):
            pairs.append(KeyValue(f"{arch.gguf}.attention.{part}_length", lengths["head_dim"], "UINT32"))
    if scale["rope_type"] in _SCALING:
        pairs.append(KeyValue(f"{arch.gguf}.rope.scaling.type", scale["rope_type"], "STRING"))
        for key, (name, kind) in _SCALING[scale["rope_type"]].items():
            if name in scale:
                pairs.append(KeyValue(f"{arch.gguf}.{key}", scale[name], kind))
    return pairs


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def context_length(config: Mapping[str, Any]) -> int:
    """The context, tokens, within which GGUF's graph computes what the model of a config.json does: it attends to
    everything, so a sliding window (Mistral 7B v0.1: 4096 of 32768) ends it."""
    full = {**_DEFAULTS, **_given(config)}
    length, window = int(full["max_position_embeddings"]), full.get("sliding_window")
    return min(length, int(window)) if window and full["model_type"] == "mistral" else length


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of a config.json, in transformers 5's form: rope_type, rope_theta, and the type's own.

    Reads both `rope_parameters` and the older `rope_theta` with `rope_scaling`. Raises UnsupportedError for a type or
    parameter that the GGUF graph does not compute, SourceError for a missing parameter.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise SourceError(f"config.json: the rotary parameters are {given!r}, an object is expected")
    found = {key: value for key, value in given.items() if value is not None}
    legacy = found.pop("type", None)
    kind = found.setdefault("rope_type", legacy or "default")
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind in ("yarn", "llama3"):
        inherited = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        found.setdefault("original_max_position_embeddings", inherited)
    needed = {"default": (), "linear": ("factor",), "yarn": ("factor",), "llama3": _LLAMA3}
    if str(kind) not in needed:
        raise UnsupportedError(f"config.json: rope_type {kind!r} is not supported; supported: {', '.join(needed)}")
    if missing := [key for key in needed[kind] if found.get(key) is None]:
        raise SourceError(f"config.json: rope_type {kind!r} lacks {', '.join(missing)}; it has {sorted(found)}")
    numbers = {key: found[key] for key in ("rope_theta", *needed[kind])}
    if odd := {key: value for key, value in numbers.items() if not isinstance(value, int | float) or value <= 0}:
        raise SourceError(f"config.json: these of rope_type {kind!r} must be positive numbers: {odd}")
    understood = {"rope_type", "rope_theta"} | set(needed[kind])
    understood |= {name for name, _ in _SCALING.get(kind, {}).values()}
    for key in found.keys() - understood:
        if found[key] is not None and not _harmless(key, found):
            raise UnsupportedError(f"config.json: {key} = {found[key]!r} of rope_type {kind!r} cannot be said in GGUF")
    return {key: value for key, value in found.items() if key in understood and value is not None}


def _harmless(key: str, scale: Mapping[str, Any]) -> bool:
    """Whether a parameter has the value that llama.cpp computes anyway (or, unscaled, means nothing)."""
    value = scale[key]
    if key == "attention_factor" and scale["rope_type"] == "yarn":
        return math.isclose(value, 0.1 * math.log(scale["factor"]) + 1.0, rel_tol=1e-6)
    plain = scale["rope_type"] in ("default", "linear") and key == "original_max_position_embeddings"
    return plain or (key, value) in {("partial_rotary_factor", 1.0), ("truncate", True)}


def extra_tensors(arch: Architecture, config: Mapping[str, Any]) -> dict[str, F32]:
    """GGUF-only tensors: for llama3 scaling rope_freqs.weight (head_dim / 2,), the divisor of each frequency."""
    scale = rope(config)
    if scale["rope_type"] != "llama3":
        return {}
    return {ROPE_FREQS: _divisors(scale, architectures.dims(arch, config)["head_dim"])}


def _divisors(scale: Mapping[str, Any], head_dim: int) -> F32:
    """As generate_extra_tensors of llama.cpp's conversion/llama.py, in float32 like it."""
    factor, low, high, context = (scale[key] for key in _LLAMA3)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1.0) / np.float32(scale["rope_theta"]) ** exponents
    wavelength = np.float32(2 * math.pi) / frequency
    smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
    between = np.float32(1.0) / ((np.float32(1.0) - smooth) / np.float32(factor) + smooth)
    found = np.where(wavelength > context / low, np.float32(factor), between)
    return np.where(wavelength < context / high, np.float32(1.0), found).astype(np.float32)


def decode(arch_name: str, kv: Mapping[str, Any], rope_freqs: F32 | None = None) -> dict[str, Any]:
    """A config.json that transformers accepts, from a GGUF's pairs and its rope_freqs.weight if it has one.

    `tie_word_embeddings` is left to the caller, who knows whether output.weight is there.
    Raises UnsupportedError for a pair that changes the graph and that config.json cannot say, SourceError.
    """
    arch = architectures.find_gguf(arch_name)
    own = {key.removeprefix(arch_name + "."): value for key, value in kv.items() if key.startswith(arch_name + ".")}
    own.setdefault("vocab_size", len(kv.get("tokenizer.ggml.tokens", ())))
    own.setdefault("attention.head_count_kv", own.get("attention.head_count"))
    config: dict[str, Any] = {"architectures": [arch.model_class], "model_type": arch.model_type, "hidden_act": "silu"}
    for key, (name, kind) in _TABLE.items():
        value = require({f"{arch_name}.{key}": own[key]} if key in own else {}, f"{arch_name}.{key}")
        if isinstance(value, list):
            raise UnsupportedError(f"{arch_name}.{key} differs by layer ({value[:4]} ...): not supported")
        config[name] = shortest(value) if kind == "FLOAT32" else value
    config["head_dim"] = _head_dim(arch_name, own, config)
    config["rope_parameters"] = _rope_of(arch_name, own, config, rope_freqs)
    for name, key in _TOKEN_IDS.items():
        config[name] = kv.get(f"tokenizer.ggml.{key}")
    scaling = _SCALING.get(own.get("rope.scaling.type", ""), {})
    for key in own.keys() - _TABLE.keys() - _HANDLED - scaling.keys():
        if own[key]:  # a zero count or a false flag says what is the case anyway
            raise UnsupportedError(f"{arch_name}.{key} = {own[key]!r}: quantkit does not know this part of the graph")
    architectures.dims(arch, config)
    return config


def _head_dim(name: str, own: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    default = config["hidden_size"] // config["num_attention_heads"]
    head_dim = int(own.get("attention.key_length", default))
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head_dim) != head_dim:
            raise UnsupportedError(f"{name}.{key} = {own[key]} differs from the key's length {head_dim}: not supported")
    return head_dim


def _rope_of(name: str, own: Mapping[str, Any], config: Mapping[str, Any], divisors: F32 | None) -> dict[str, Any]:
    scale = {"rope_theta": shortest(own.get("rope.freq_base", 10000.0)), "rope_type": "default"}
    kind = own.get("rope.scaling.type", "none")
    if kind != "none":
        if kind not in _SCALING:
            supported = ", ".join(_SCALING)
            raise UnsupportedError(f"{name}.rope.scaling.type {kind!r} is not supported; supported: {supported}")
        scale["rope_type"] = kind
        for key, (parameter, number) in _SCALING[kind].items():
            if key in own:
                scale[parameter] = shortest(own[key]) if number == "FLOAT32" else own[key]
    if divisors is None:
        return scale
    # GGUF keeps llama3 scaling only as its result: try the parameters in use and take those that give it exactly.
    for context in (8192, 4096, 16384, 32768, 2048, 1024, 512, 65536, 131072):
        guess = dict(zip(_LLAMA3, (shortest(divisors.max()), 1.0, 4.0, context), strict=True))
        if np.allclose(_divisors({**scale, **guess}, config["head_dim"]), divisors, rtol=1e-6, atol=0):
            return {**scale, "rope_type": "llama3", **guess}
    raise UnsupportedError(f"{ROPE_FREQS} (up to {divisors.max()}) is not a llama3 rotary scaling that quantkit knows")
