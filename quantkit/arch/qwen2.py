"""Qwen2 and Qwen2.5 (dense): Qwen2ForCausalLM. Queries, keys and values have biases; no rows are interleaved."""

from quantkit.arch import BLOCK, GATED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

ARCH = Architecture(
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    gguf="qwen2",
    tensors={
        **GATED,
        BLOCK + "self_attn.q_proj.bias": ("q_width",),
        BLOCK + "self_attn.k_proj.bias": ("kv_width",),
        BLOCK + "self_attn.v_proj.bias": ("kv_width",),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
    when=UNTIED,
    fixed={"hidden_act": ("silu",), "use_sliding_window": (False,)},
)
