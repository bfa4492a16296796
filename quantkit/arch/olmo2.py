"""OLMo 2: Olmo2ForCausalLM. Norms follow attention and feed-forward; queries and keys are normalised whole."""

from quantkit.arch import BLOCK, GATED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

ARCH = Architecture(
    model_type="olmo2",
    model_class="Olmo2ForCausalLM",
    gguf="olmo2",
    tensors={
        **{name: dims for name, dims in GATED.items() if "input_layernorm" not in name},
        BLOCK + "self_attn.q_norm.weight": ("q_width",),
        BLOCK + "self_attn.k_norm.weight": ("kv_width",),
        BLOCK + "post_feedforward_layernorm.weight": ("hidden",),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE},
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    when=UNTIED,
    named={
        BLOCK + "post_attention_layernorm.weight": "blk.{}.post_attention_norm.weight",
        BLOCK + "post_feedforward_layernorm.weight": "blk.{}.post_ffw_norm.weight",
    },
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "sliding_window": (None,)},
)
