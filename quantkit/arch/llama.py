"""Llama: LlamaForCausalLM, and the many models that share its graph (SmolLM2, TinyLlama, Yi ...)."""

from quantkit.arch import RMS_NORM, ROPE, SIZES, Architecture

_BLOCK = "model.layers.{}."

ARCH = Architecture(
    model_type="llama",
    model_class="LlamaForCausalLM",
    gguf="llama",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        _BLOCK + "input_layernorm.weight": ("hidden",),
        _BLOCK + "self_attn.q_proj.weight": ("q_width", "hidden"),
        _BLOCK + "self_attn.q_proj.bias": ("q_width",),
        _BLOCK + "self_attn.k_proj.weight": ("kv_width", "hidden"),
        _BLOCK + "self_attn.k_proj.bias": ("kv_width",),
        _BLOCK + "self_attn.v_proj.weight": ("kv_width", "hidden"),
        _BLOCK + "self_attn.v_proj.bias": ("kv_width",),
        _BLOCK + "self_attn.o_proj.weight": ("hidden", "q_width"),
        _BLOCK + "self_attn.o_proj.bias": ("hidden",),
        _BLOCK + "post_attention_layernorm.weight": ("hidden",),
        _BLOCK + "mlp.gate_proj.weight": ("intermediate", "hidden"),
        _BLOCK + "mlp.gate_proj.bias": ("intermediate",),
        _BLOCK + "mlp.up_proj.weight": ("intermediate", "hidden"),
        _BLOCK + "mlp.up_proj.bias": ("intermediate",),
        _BLOCK + "mlp.down_proj.weight": ("hidden", "intermediate"),
        _BLOCK + "mlp.down_proj.bias": ("hidden",),
        "model.norm.weight": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE, "vocab_size": ("vocab_size", "UINT32")},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},  # of transformers' configuration class
    when={
        _BLOCK + "self_attn.q_proj.bias": ("attention_bias", True),
        _BLOCK + "self_attn.k_proj.bias": ("attention_bias", True),
        _BLOCK + "self_attn.v_proj.bias": ("attention_bias", True),
        _BLOCK + "self_attn.o_proj.bias": ("attention_bias", True),
        _BLOCK + "mlp.gate_proj.bias": ("mlp_bias", True),
        _BLOCK + "mlp.up_proj.bias": ("mlp_bias", True),
        _BLOCK + "mlp.down_proj.bias": ("mlp_bias", True),
        "lm_head.weight": ("tie_word_embeddings", False),
    },
    permuted={
        _BLOCK + "self_attn.q_proj.weight": "num_attention_heads",
        _BLOCK + "self_attn.q_proj.bias": "num_attention_heads",
        _BLOCK + "self_attn.k_proj.weight": "num_key_value_heads",
        _BLOCK + "self_attn.k_proj.bias": "num_key_value_heads",
    },
    fixed={"hidden_act": ("silu",)},
)
