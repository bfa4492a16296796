"""Architectures: one file per model_type, data only. What a checkpoint must hold, and how GGUF stores it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from quantkit import plugins
from quantkit.errors import SourceError, UnsupportedError

Kind = Literal["decoder", "encoder", "encoder-decoder"]
AUTO_CLASS = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModel", "encoder-decoder": "AutoModelForSeq2SeqLM"}
"""The class of transformers that builds a kind of model."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as Hugging Face names it and as GGUF stores it. Templates are names with "{}" for the layer.

    tensors:    template ("model.layers.{}.mlp.up_proj.weight") -> names of its dimensions, rows first (see `dims`).
    pairs:      GGUF key after "<gguf>." -> key of `standard`, kind of the value (gguf.GGUFValueType's name).
    keys:       standard name of a config.json key -> this architecture's own ("hidden_size" -> "n_embd").
    defaults:   standard key -> what transformers takes where config.json says nothing.
    implied:    (standard keys with values, standard keys with values): where config.json says all of the former (None: where
                it says nothing), transformers takes the latter, whatever is said.
    when:       templates that exist only if the standard key has this value; of True and False the truth counts.
    optional:   templates that a checkpoint may lack without config.json saying so.
    fixed:      config keys that the GGUF graph takes for granted -> the values it computes (a missing key is the first).
    stacked:    templates with a second "{}", counted by this dimension, of which GGUF makes one tensor (experts).
    fused:      template of a tensor (experts, rows, width) -> templates of those that it holds one below the other.
    moved:      template that transformers' model uses -> the checkpoint's, of a tensor that either may hold.
    permuted:   templates whose rows GGUF interleaves within each head (rotary halves to pairs) -> the standard key that
                counts those heads.
    grouped:    templates of a fused q/k/v whose rows lie by key-value head (its queries, its key, its value); GGUF has all
                queries, then all keys, then all values.
    transposed: templates that the checkpoint holds as (in, out).
    shifted:    templates of gains that GGUF stores with one added.
    scaled:     templates of gains that GGUF stores times hidden_size ** -0.5 where scale_decoder_outputs is true: its graph
                lacks that factor before the head.
    named:      template -> GGUF's, where gguf-py's TensorNameMap does not know it.
    ignored:    patterns (fnmatch) of tensors that checkpoints may hold and GGUF has no place for.
    prefix:     of the base model, which some checkpoints leave out of every name, or put before it.
    decoded:    what config.json must say besides where it is made from a GGUF.
    """

    model_type: str
    model_class: str
    gguf: str
    tensors: Mapping[str, tuple[str, ...]]
    pairs: Mapping[str, tuple[str, str]]
    kind: Kind = "decoder"
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    implied: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = ()
    when: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    stacked: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    permuted: Mapping[str, str] = field(default_factory=dict)
    grouped: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    decoded: Mapping[str, Any] = field(default_factory=dict)


# What most architectures share: pairs to be merged into theirs.
SIZES = {
    "block_count": ("num_hidden_layers", "UINT32"),
    "context_length": ("context_length", "UINT32"),
    "embedding_length": ("hidden_size", "UINT32"),
    "feed_forward_length": ("intermediate_size", "UINT32"),
    "attention.head_count": ("num_attention_heads", "UINT32"),
    "attention.head_count_kv": ("num_key_value_heads", "UINT32"),
    "attention.key_length": ("head_dim", "UINT32"),
    "attention.value_length": ("head_dim", "UINT32"),
}
RMS_NORM = {"attention.layer_norm_rms_epsilon": ("rms_norm_eps", "FLOAT32")}
LAYER_NORM = {"attention.layer_norm_epsilon": ("layer_norm_eps", "FLOAT32")}
ROPE = {"rope.dimension_count": ("rotary_dim", "UINT32"), "rope.freq_base": ("rope_theta", "FLOAT32")}
EXPERTS = {"expert_count": ("num_experts", "UINT32"), "expert_used_count": ("num_experts_per_tok", "UINT32")}
WINDOW = {
    "attention.sliding_window": ("sliding_window", "UINT32"),
    "attention.sliding_window_pattern": ("sliding_window_pattern", "UINT32"),
}

BLOCK = "model.layers.{}."
GATED = {
    "model.embed_tokens.weight": ("vocab", "hidden"),
    BLOCK + "input_layernorm.weight": ("hidden",),
    BLOCK + "self_attn.q_proj.weight": ("q_width", "hidden"),
    BLOCK + "self_attn.k_proj.weight": ("kv_width", "hidden"),
    BLOCK + "self_attn.v_proj.weight": ("kv_width", "hidden"),
    BLOCK + "self_attn.o_proj.weight": ("hidden", "q_width"),
    BLOCK + "post_attention_layernorm.weight": ("hidden",),
    BLOCK + "mlp.gate_proj.weight": ("intermediate", "hidden"),
    BLOCK + "mlp.up_proj.weight": ("intermediate", "hidden"),
    BLOCK + "mlp.down_proj.weight": ("hidden", "intermediate"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": ("vocab", "hidden"),
}
"""Templates of the decoder with a gated feed-forward that llama has, and what many derive from."""
UNTIED = {"lm_head.weight": ("tie_word_embeddings", False)}
PAIRED = {
    BLOCK + "self_attn.q_proj.weight": "num_attention_heads",
    BLOCK + "self_attn.k_proj.weight": "num_key_value_heads",
}
"""What GGUF's llama graph wants permuted."""


def _unmapped(model_type: str, model_class: str, kind: Kind, prefix: str, **keys: str) -> Architecture:
    return Architecture(model_type, model_class, "", {}, {}, kind=kind, keys=keys, prefix=prefix)


_BART = {
    "hidden_size": "d_model", "num_hidden_layers": "encoder_layers", "num_decoder_layers": "decoder_layers",
    "num_attention_heads": "encoder_attention_heads", "intermediate_size": "encoder_ffn_dim",
}  # fmt: skip
UNMAPPED: Mapping[str, Architecture] = {
    found.model_type: found
    for found in (
        _unmapped("roberta", "RobertaModel", "encoder", "roberta."),
        _unmapped("xlm-roberta", "XLMRobertaModel", "encoder", "roberta."),
        _unmapped("camembert", "CamembertModel", "encoder", "roberta."),
        _unmapped("electra", "ElectraModel", "encoder", "electra."),
        _unmapped("mpnet", "MPNetModel", "encoder", "mpnet."),
        _unmapped("deberta-v2", "DebertaV2Model", "encoder", "deberta."),
        _unmapped("modernbert", "ModernBertModel", "encoder", "model."),
        _unmapped(
            "distilbert", "DistilBertModel", "encoder", "distilbert.", hidden_size="dim", num_hidden_layers="n_layers",
            num_attention_heads="n_heads", intermediate_size="hidden_dim",
        ),
        _unmapped("opt", "OPTForCausalLM", "decoder", "", intermediate_size="ffn_dim"),
        _unmapped(
            "bloom", "BloomForCausalLM", "decoder", "transformer.", num_hidden_layers="n_layer", num_attention_heads="n_head",
        ),
        _unmapped("gemma", "GemmaForCausalLM", "decoder", ""),
        _unmapped("olmo", "OlmoForCausalLM", "decoder", ""),
        _unmapped("phi", "PhiForCausalLM", "decoder", ""),
        _unmapped("smollm3", "SmolLM3ForCausalLM", "decoder", ""),
        _unmapped("bart", "BartForConditionalGeneration", "encoder-decoder", "model.", **_BART),
        _unmapped("marian", "MarianMTModel", "encoder-decoder", "model.", **_BART),
    )
}  # fmt: skip
"""Models that ONNX alone is made of, by model_type: transformers' own model says what their checkpoints hold."""

MOST_LAYERS = 4096  # beyond it config.json is damaged, and listing the tensors would not end
MOST_EXPERTS = 4096
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_COUNTS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts", "moe_intermediate_size",
             "num_decoder_layers", "type_vocab_size", "relative_attention_num_buckets")  # fmt: skip


@cache
def known() -> MappingProxyType[str, Architecture]:
    """Every architecture by model_type."""
    found = plugins.load(__name__, Architecture, "ARCH")
    return MappingProxyType({value.model_type: value for value in found.values()})


def find(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a parsed config.json. Raises UnsupportedError."""
    if (found := get(config)) is None:
        raise UnsupportedError(
            f"config.json: model_type {config.get('model_type')!r} is not supported; supported: {', '.join(known())}; as ONNX "
            f"alone: {', '.join(UNMAPPED)}"
        )
    return found


def get(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a parsed config.json, None for one that nobody described."""
    model_type = str(config.get("model_type"))
    return known().get(model_type) or UNMAPPED.get(model_type)


def find_gguf(name: str, *, experts: bool = False) -> Architecture:
    """The architecture of a GGUF's general.architecture; of several that share it, the one with experts or without, and
    then the one it is named after."""
    sharing = [value for value in known().values() if value.gguf == name]
    if not sharing:
        supported = ", ".join(sorted({value.gguf for value in known().values()}))
        raise UnsupportedError(f"general.architecture {name!r} is not supported; supported: {supported}")
    return min(sharing, key=lambda value: (("expert_count" in value.pairs) != experts, value.model_type != name))


def standard(arch: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json under standard names: its own ones renamed, defaults filled in, and what follows from them added:
    num_key_value_heads, head_dim, rotary_dim. Raises SourceError for a missing or impossible size."""
    given = {key: value for key, value in config.items() if value is not None}
    renamed = {key: given[own] for key, own in arch.keys.items() if own in given}
    stray = {key for key, own in arch.keys.items() if own != key}  # a standard name that means nothing here
    found = {**arch.defaults, **{key: value for key, value in given.items() if key not in stray}, **renamed}
    if "num_local_experts" in given:  # transformers' other name for it, whatever the model
        found["num_experts"] = given["num_local_experts"]
    for conditions, values in arch.implied:
        if all(found.get(key) == value for key, value in conditions.items()):
            found |= values
    if "intermediate_size" not in found and found.get("ffn_factor"):
        found["intermediate_size"] = found["ffn_factor"] * found.get("hidden_size", 0)
    bad = [f"{arch.keys.get(key, key)} = {found.get(key)!r}" for key in _COUNTS if not _positive(found.get(key))]
    optional = _OPTIONAL if arch.tensors else ()  # DeBERTa's type_vocab_size is 0
    bad += [f"{arch.keys.get(key, key)} = {found[key]!r}" for key in optional if not _positive(found.get(key, 1))]
    if bad:
        raise SourceError(f"config.json ({arch.model_type}): these must be positive whole numbers: {', '.join(bad)}")
    for key, most in (("num_hidden_layers", MOST_LAYERS), ("num_decoder_layers", MOST_LAYERS), ("num_experts", MOST_EXPERTS)):
        if found.get(key, 1) > most:
            raise SourceError(f"config.json ({arch.model_type}): {arch.keys.get(key, key)} = {found[key]} cannot be")
    found.setdefault("num_key_value_heads", found["num_attention_heads"])
    found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    _layer_kinds(found)
    rope = found.get("rope_parameters")
    rotary = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    rotary = rotary or found.get("partial_rotary_factor")
    found["rotary_dim"] = int(found["head_dim"] * (rotary or 1))
    return found


def _layer_kinds(found: dict[str, Any]) -> None:
    """Where layers with a sliding window have rotary parameters of their own, those of the others become rope_parameters and
    the window's base rope_local_base_freq; sliding_window_pattern says which layer of how many has no window."""
    rope = found.get("rope_parameters")
    if isinstance(rope, Mapping) and isinstance(rope.get("full_attention"), Mapping):
        local = rope.get("sliding_attention") or {}
        found["rope_parameters"] = rope["full_attention"]
        found.setdefault("rope_local_base_freq", local.get("rope_theta"))
    kinds = found.get("layer_types")
    if kinds and "full_attention" in kinds and "sliding_attention" in kinds:
        found["sliding_window_pattern"] = list(kinds).index("full_attention") + 1


def dims(arch: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    """The lengths of the named dimensions of `arch.tensors`. Raises SourceError for a missing or impossible value."""
    full = standard(arch, config)
    heads, kv_heads, head_dim = (full[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    return {
        "hidden": full["hidden_size"],
        "intermediate": full["intermediate_size"],
        "gate_up": 2 * full["intermediate_size"],
        "vocab": full["vocab_size"],
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "q_width": heads * head_dim,
        "kv_width": kv_heads * head_dim,
        "qkv_width": (heads + 2 * kv_heads) * head_dim,
        "experts": full.get("num_experts", 0),
        "expert_intermediate": full.get("moe_intermediate_size", full["intermediate_size"]),
        "positions": full.get("max_position_embeddings", 0),
        "token_types": full.get("type_vocab_size", 0),
        "buckets": full.get("relative_attention_num_buckets", 0),
    }


def _positive(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 32


def templates(arch: Architecture, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The name templates that a checkpoint with this config.json has."""
    full = standard(arch, config)
    return tuple(
        template
        for template in arch.tensors
        if template not in arch.when or _has(full.get(arch.when[template][0]), arch.when[template][1])
    )


def _has(given: Any, value: Any) -> bool:
    return bool(given) == value if isinstance(value, bool) else bool(given == value)


def layers(arch: Architecture, config: Mapping[str, Any], template: str) -> int:
    """How many layers a template counts: an encoder-decoder's stacks may differ."""
    full = standard(arch, config)
    decoder = arch.kind == "encoder-decoder" and template.startswith("decoder.")
    return int(full.get("num_decoder_layers", full["num_hidden_layers"]) if decoder else full["num_hidden_layers"])


def names(arch: Architecture, config: Mapping[str, Any], template: str) -> list[tuple[str, ...]]:
    """A template's names, layer by layer: one, or for a stacked template all that GGUF makes one tensor of."""
    if "{}" not in template:
        return [(template,)]
    count = layers(arch, config, template)
    if template not in arch.stacked:
        return [(template.format(layer),) for layer in range(count)]
    stack = dims(arch, config)[arch.stacked[template]]
    return [tuple(template.format(layer, index) for index in range(stack)) for layer in range(count)]


def expected(arch: Architecture, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape (rows first) of every tensor that a checkpoint with this config.json has, nothing fused."""
    lengths = dims(arch, config)
    return {
        name: tuple(lengths[dim] for dim in arch.tensors[template])
        for template in templates(arch, config)
        for group in names(arch, config, template)
        for name in group
    }


def template_of(arch: Architecture, name: str) -> str:
    """The template that a canonical name is of. Raises KeyError."""
    for candidate in (name, _NUMBER.sub("{}", name), _NUMBER.sub("{}", name, count=1)):
        if candidate in arch.tensors:
            return candidate
    raise KeyError(f"arch {arch.model_type} has no tensor {name!r}")
