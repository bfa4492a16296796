"""Falcon: FalconForCausalLM, of the old and the new kind. Queries, keys and values are one matrix, by key-value head."""

from quantkit.arch import LAYER_NORM, ROPE, SIZES, UNTIED, Architecture

_BLOCK = "transformer.h.{}."
_ONE_NORM = tuple(_BLOCK + f"input_layernorm.{part}" for part in ("weight", "bias"))
_TWO_NORMS = tuple(_BLOCK + f"{name}.{part}" for name in ("ln_attn", "ln_mlp") for part in ("weight", "bias"))

ARCH = Architecture(
    model_type="falcon",
    model_class="FalconForCausalLM",
    gguf="falcon",
    tensors={
        "transformer.word_embeddings.weight": ("vocab", "hidden"),
        _BLOCK + "self_attention.query_key_value.weight": ("qkv_width", "hidden"),
        _BLOCK + "self_attention.dense.weight": ("hidden", "q_width"),
        _BLOCK + "mlp.dense_h_to_4h.weight": ("intermediate", "hidden"),
        _BLOCK + "mlp.dense_4h_to_h.weight": ("hidden", "intermediate"),
        **dict.fromkeys((*_ONE_NORM, *_TWO_NORMS), ("hidden",)),
        "transformer.ln_f.weight": ("hidden",),
        "transformer.ln_f.bias": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
    },
    pairs={**SIZES, **LAYER_NORM, **ROPE},
    keys={
        "num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size", "layer_norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "layer_norm_eps": 1e-5, "ffn_factor": 4, "max_position_embeddings": 2048, "tie_word_embeddings": True,
        "new_decoder_architecture": False, "multi_query": True,
    },
    implied=(
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": None}, {"num_ln_in_parallel_attn": 2}),
        ({"new_decoder_architecture": False}, {"num_ln_in_parallel_attn": 1}),
        ({"new_decoder_architecture": False, "multi_query": True}, {"num_key_value_heads": 1}),
    ),
    when={
        **UNTIED,
        **dict.fromkeys(_ONE_NORM, ("num_ln_in_parallel_attn", 1)),
        **dict.fromkeys(_TWO_NORMS, ("num_ln_in_parallel_attn", 2)),
    },
    grouped=(_BLOCK + "self_attention.query_key_value.weight",),
    fixed={
        "activation": ("gelu",), "alibi": (False,), "parallel_attn": (True,), "bias": (False,),
        "num_ln_in_parallel_attn": (1, 2, None),
    },
    prefix="transformer.",
    decoded={"new_decoder_architecture": True},  # of which the old kind is a case: one key-value head, one norm
)  # fmt: skip
