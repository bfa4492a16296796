"""Qwen3 (dense): Qwen3ForCausalLM. Queries and keys are normalised per head; no rows are interleaved."""

from quantkit.arch import RMS_NORM, ROPE, SIZES, Architecture

_BLOCK = "model.layers.{}."

ARCH = Architecture(
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    gguf="qwen3",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        _BLOCK + "input_layernorm.weight": ("hidden",),
        _BLOCK + "self_attn.q_proj.weight": ("q_width", "hidden"),
        _BLOCK + "self_attn.q_norm.weight": ("head_dim",),
        _BLOCK + "self_attn.k_proj.weight": ("kv_width", "hidden"),
        _BLOCK + "self_attn.k_norm.weight": ("head_dim",),
        _BLOCK + "self_attn.v_proj.weight": ("kv_width", "hidden"),
        _BLOCK + "self_attn.o_proj.weight": ("hidden", "q_width"),
        _BLOCK + "post_attention_layernorm.weight": ("hidden",),
        _BLOCK + "mlp.gate_proj.weight": ("intermediate", "hidden"),
        _BLOCK + "mlp.up_proj.weight": ("intermediate", "hidden"),
        _BLOCK + "mlp.down_proj.weight": ("hidden", "intermediate"),
        "model.norm.weight": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE, "vocab_size": ("vocab_size", "UINT32")},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},  # of transformers' configuration class
    when={"lm_head.weight": ("tie_word_embeddings", False)},
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,)},
)
