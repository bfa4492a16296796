"""Hyper-parameters: config.json <-> the GGUF pairs under "<architecture>.", as llama.cpp's converter writes them.

Nothing is ignored silently: what one side cannot say to the other is an UnsupportedError naming key and value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit import arch as architectures
from quantkit.arch import Architecture
from quantkit.codecs.gguf_kv import KeyValue, require, shortest
from quantkit.codecs.gguf_tensors import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import F32

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
_LONGROPE = ("short_factor", "long_factor", "original_max_position_embeddings")
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_HEAD = ("attention.key_length", "attention.value_length")  # said only where they are not hidden_size / heads
_REQUIRED = {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
             "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}  # fmt: skip
_NOTES = {"rope.scaling.type", "rope.scaling.finetuned", "vocab_size"}  # read by code, or by no graph
_POOLING = {"mean": 1, "cls": 2, "last": 3}  # llama.cpp's numbers (gguf.PoolingType)
_TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def encode(arch: Architecture, config: Mapping[str, Any]) -> list[KeyValue]:
    """The pairs under "<architecture>." for a parsed config.json. Raises UnsupportedError, SourceError."""
    full = values(arch, config)
    plain_heads = full["head_dim"] * full["num_attention_heads"] == full["hidden_size"]
    pairs = [
        KeyValue(f"{arch.gguf}.{key}", float(full[name]) if kind == "FLOAT32" else full[name], kind)
        for key, (name, kind) in arch.pairs.items()
        if full.get(name) is not None and not (key in _HEAD and plain_heads)
    ]
    scale = rope(architectures.standard(arch, config)) if "rope.freq_base" in arch.pairs else {"rope_type": "default"}
    if scale["rope_type"] in _SCALING:
        pairs.append(KeyValue(f"{arch.gguf}.rope.scaling.type", scale["rope_type"], "STRING"))
        for key, (name, kind) in _SCALING[scale["rope_type"]].items():
            if name in scale:
                pairs.append(KeyValue(f"{arch.gguf}.{key}", scale[name], kind))
    return pairs


def values(arch: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the keys of `arch.pairs` stand for: the standard config.json, the rotary base and the context."""
    full = architectures.standard(arch, config)
    if "rope.freq_base" in arch.pairs:
        if arch.permuted and full["rotary_dim"] != full["head_dim"]:
            raise UnsupportedError(
                f"config.json: partial_rotary_factor makes {full['rotary_dim']} of {full['head_dim']} dimensions rotary; "
                f"the GGUF graph of {arch.model_type} rotates all of them"
            )
        scale = rope(full)
        full["rope_theta"] = scale["rope_theta"]
        if scale["rope_type"] == "longrope":
            full["rope_attention_factor"] = _longrope_factor(arch, scale, full["max_position_embeddings"])
    _check_attention(full)
    if full.get("num_decoder_layers", 0) > full["num_hidden_layers"]:
        raise UnsupportedError(
            f"config.json: {full['num_decoder_layers']} decoder layers over {full['num_hidden_layers']} of the encoder: "
            "llama.cpp loads no more of the former than of the latter"
        )
    if full.get("pooling") is not None:
        full["pooling_type"] = _POOLING[full["pooling"]]
    return full | {"context_length": context_length(config)}


def _longrope_factor(arch: Architecture, scale: Mapping[str, Any], context: int) -> float:
    """What longrope multiplies queries and keys by, as transformers has it."""
    if "rope.scaling.attn_factor" not in arch.pairs:
        raise UnsupportedError(f"config.json: rope_type 'longrope' is not supported for {arch.model_type}")
    original = scale["original_max_position_embeddings"]
    stretch = scale.get("factor") or context / original
    plain = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return float(scale.get("attention_factor") or plain)


def _check_attention(full: Mapping[str, Any]) -> None:
    """gemma's graphs divide by the root of the head's width, and for the 27B models by that of hidden_size / heads."""
    scalar, large = full.get("query_pre_attn_scalar"), {"gemma2": 46, "gemma3_text": 62}.get(str(full["model_type"]))
    width = full["hidden_size"] // full["num_attention_heads"] if full["num_hidden_layers"] == large else full["head_dim"]
    if scalar is not None and scalar != width:
        raise UnsupportedError(f"config.json: query_pre_attn_scalar = {scalar}; the GGUF graph computes with {width}")


_PADDED = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions begin after the padding token's id


def context_length(config: Mapping[str, Any]) -> int:
    """The context, tokens, within which GGUF's graph computes what the model of a config.json does: where it attends to
    everything, a sliding window (Mistral 7B v0.1: 4096 of 32768) ends it."""
    arch = architectures.find(config)
    full = architectures.standard(arch, config)
    length, window = int(full.get("max_position_embeddings", 2048)), full.get("sliding_window")
    if arch.model_type in _PADDED:
        length -= int(full.get("pad_token_id", 1)) + 1
    honoured = "attention.sliding_window" in arch.pairs or "use_sliding_window" in arch.fixed
    return min(length, int(window)) if window and not honoured else length


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
    if found.get("rope_type", legacy) in ("su", "longrope"):  # the older name
        found["rope_type"] = "longrope"
    kind = found.setdefault("rope_type", legacy or "default")
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind in ("yarn", "llama3", "longrope"):
        inherited = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        found.setdefault("original_max_position_embeddings", inherited)
    needed = {"default": (), "linear": ("factor",), "yarn": ("factor",), "llama3": _LLAMA3, "longrope": _LONGROPE}
    if str(kind) not in needed:
        raise UnsupportedError(f"config.json: rope_type {kind!r} is not supported; supported: {', '.join(needed)}")
    if missing := [key for key in needed[kind] if found.get(key) is None]:
        raise SourceError(f"config.json: rope_type {kind!r} lacks {', '.join(missing)}; it has {sorted(found)}")
    numbers = {key: found[key] for key in ("rope_theta", *needed[kind]) if not key.endswith("_factor") or kind != "longrope"}
    if odd := {key: value for key, value in numbers.items() if not isinstance(value, int | float) or value <= 0}:
        raise SourceError(f"config.json: these of rope_type {kind!r} must be positive numbers: {odd}")
    understood = {"rope_type", "rope_theta"} | set(needed[kind])
    understood |= {name for name, _ in _SCALING.get(kind, {}).values()}
    understood |= {"factor", "attention_factor"} if kind == "longrope" else set()
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
    return plain or key == "partial_rotary_factor" or (key, value) == ("truncate", True)  # the former is rotary_dim


def extra_tensors(arch: Architecture, config: Mapping[str, Any]) -> dict[str, F32]:
    """GGUF-only tensors: for llama3 scaling rope_freqs.weight (head_dim / 2,), the divisor of each frequency."""
    if "rope.freq_base" not in arch.pairs:
        return {}
    scale = rope(architectures.standard(arch, config))
    if scale["rope_type"] == "longrope":
        factors = {ROPE_LONG: scale["long_factor"], ROPE_SHORT: scale["short_factor"]}
        return {name: np.array(values, np.float32) for name, values in factors.items()}
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


def decode(arch: Architecture, kv: Mapping[str, Any], extra: Mapping[str, F32] = MappingProxyType({})) -> dict[str, Any]:
    """A config.json that transformers accepts, from a GGUF's pairs and its rotary tensors (`extra_tensors`) if it has any.

    What only the presence of tensors says (`arch.when`, a tied head) is left to the caller.
    Raises UnsupportedError for a pair that changes the graph and that config.json cannot say, SourceError.
    """
    own = {key.removeprefix(arch.gguf + "."): value for key, value in kv.items() if key.startswith(arch.gguf + ".")}
    own.setdefault("attention.head_count_kv", own.get("attention.head_count"))
    config: dict[str, Any] = {"architectures": [arch.model_class], "model_type": arch.model_type}
    config |= {key: values[0] for key, values in arch.fixed.items()}
    config |= arch.decoded
    standard: dict[str, Any] = {"vocab_size": own.get("vocab_size") or len(kv.get("tokenizer.ggml.tokens", ()))}
    if "type_vocab_size" in arch.defaults:
        standard["type_vocab_size"] = kv.get("tokenizer.ggml.token_type_count")
    for key, (name, kind) in arch.pairs.items():
        if key in own or key in _REQUIRED:
            value = require({f"{arch.gguf}.{key}": own[key]} if key in own else {}, f"{arch.gguf}.{key}")
            if isinstance(value, list):
                raise UnsupportedError(f"{arch.gguf}.{key} differs by layer ({value[:4]} ...): not supported")
            standard[name] = shortest(value) if kind == "FLOAT32" else value
    standard["max_position_embeddings"] = standard.pop("context_length", None)
    standard["head_dim"] = _head_dim(arch, own, standard)
    rotary = standard.pop("rotary_dim", standard["head_dim"])
    standard.pop("rope_theta", None)
    attention_factor = standard.pop("rope_attention_factor", None)
    if pooling := standard.pop("pooling_type", None):
        config["pooling"] = _pooling(arch.gguf, pooling)
    if "rope.freq_base" in arch.pairs:
        scale = _rope_of(arch.gguf, own, standard, extra)
        if scale["rope_type"] == "longrope" and attention_factor:
            scale["attention_factor"] = attention_factor
        partial = {"partial_rotary_factor": rotary / standard["head_dim"]} if rotary != standard["head_dim"] else {}
        config["rope_parameters"] = scale | partial
        if (local := standard.pop("rope_local_base_freq", None)) is not None:
            kinds = {"full_attention": config["rope_parameters"], "sliding_attention": {"rope_theta": local}}
            config["rope_parameters"] = {kind: {"rope_type": "default", **values} for kind, values in kinds.items()}
    if "head_dim" not in arch.defaults and standard["head_dim"] == standard["hidden_size"] // standard["num_attention_heads"]:
        del standard["head_dim"]  # some configurations derive it and take none
    config |= {arch.keys.get(key, key): value for key, value in standard.items() if value is not None}
    for name, key in _TOKEN_IDS.items():
        config[name] = kv.get(f"tokenizer.ggml.{key}")
    scaling = _SCALING.get(own.get("rope.scaling.type", ""), {})
    for key in own.keys() - arch.pairs.keys() - set(_HEAD) - _NOTES - scaling.keys() - {"rope.dimension_count"}:
        if own[key]:  # a zero count or a false flag says what is the case anyway
            raise UnsupportedError(f"{arch.gguf}.{key} = {own[key]!r}: quantkit does not know this part of the graph")
    architectures.dims(arch, config)
    return config


def _pooling(name: str, number: int) -> str:
    if number not in _POOLING.values():
        raise UnsupportedError(f"{name}.pooling_type = {number}: quantkit knows {_POOLING}")
    return next(word for word, known in _POOLING.items() if known == number)


def _head_dim(arch: Architecture, own: Mapping[str, Any], standard: Mapping[str, Any]) -> int:
    default = standard["hidden_size"] // standard["num_attention_heads"]
    head_dim = int(own.get("attention.key_length", default))
    rotary = own.get("rope.dimension_count", head_dim)
    if own.get("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(
            f"{arch.gguf}.attention.value_length = {own['attention.value_length']} differs from the key's length "
            f"{head_dim}: not supported"
        )
    if rotary > head_dim or (arch.permuted and rotary != head_dim):
        raise UnsupportedError(
            f"{arch.gguf}.rope.dimension_count = {rotary} differs from the key's length {head_dim}: not supported"
        )
    return head_dim


def _rope_of(name: str, own: Mapping[str, Any], config: Mapping[str, Any], extra: Mapping[str, F32]) -> dict[str, Any]:
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
    if ROPE_LONG in extra and ROPE_SHORT in extra:
        factors = {"long_factor": extra[ROPE_LONG].tolist(), "short_factor": extra[ROPE_SHORT].tolist()}
        original = {"original_max_position_embeddings": config.get("original_max_position_embeddings")}
        return {**scale, "rope_type": "longrope", **factors, **original}
    if ROPE_FREQS not in extra:
        return scale
    divisors = extra[ROPE_FREQS]
    # GGUF keeps llama3 scaling only as its result: try the parameters in use and take those that give it exactly.
    for context in (8192, 4096, 16384, 32768, 2048, 1024, 512, 65536, 131072):
        guess = dict(zip(_LLAMA3, (shortest(divisors.max()), 1.0, 4.0, context), strict=True))
        if np.allclose(_divisors({**scale, **guess}, config["head_dim"]), divisors, rtol=1e-6, atol=0):
            return {**scale, "rope_type": "llama3", **guess}
    raise UnsupportedError(f"{ROPE_FREQS} (up to {divisors.max()}) is not a llama3 rotary scaling that quantkit knows")
