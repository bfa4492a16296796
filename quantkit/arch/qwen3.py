"""Qwen3 (dense): Qwen3ForCausalLM. Queries and keys are normalised per head; no rows are interleaved."""

from quantkit.arch import BLOCK, GATED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

ARCH = Architecture(
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    gguf="qwen3",
    tensors={
        **GATED,
        BLOCK + "self_attn.q_norm.weight": ("head_dim",),
        BLOCK + "self_attn.k_norm.weight": ("head_dim",),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
    when=UNTIED,
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,)},
)
