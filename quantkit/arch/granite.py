"""Granite (dense): GraniteForCausalLM. llama with four multipliers."""

from quantkit.arch import GATED, PAIRED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

ARCH = Architecture(
    model_type="granite",
    model_class="GraniteForCausalLM",
    gguf="granite",
    tensors=GATED,
    pairs={
        **SIZES, **RMS_NORM, **ROPE, "vocab_size": ("vocab_size", "UINT32"),
        "attention.scale": ("attention_multiplier", "FLOAT32"), "embedding_scale": ("embedding_multiplier", "FLOAT32"),
        "residual_scale": ("residual_multiplier", "FLOAT32"), "logit_scale": ("logits_scaling", "FLOAT32"),
    },
    defaults={
        "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "attention_multiplier": 1.0, "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0, "logits_scaling": 1.0,
    },
    when=UNTIED,
    permuted=PAIRED,
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
)  # fmt: skip
