"""Mistral: MistralForCausalLM. GGUF runs it as "llama"."""

from quantkit.arch import RMS_NORM, ROPE, SIZES, Architecture

_BLOCK = "model.layers.{}."

ARCH = Architecture(
    model_type="mistral",
    model_class="MistralForCausalLM",
    gguf="llama",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        _BLOCK + "input_layernorm.weight": ("hidden",),
        _BLOCK + "self_attn.q_proj.weight": ("q_width", "hidden"),
        _BLOCK + "self_attn.k_proj.weight": ("kv_width", "hidden"),
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
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 131072},  # of transformers' configuration class
    when={"lm_head.weight": ("tie_word_embeddings", False)},
    permuted={
        _BLOCK + "self_attn.q_proj.weight": "num_attention_heads",
        _BLOCK + "self_attn.k_proj.weight": "num_key_value_heads",
    },
    fixed={"hidden_act": ("silu",)},
)
