"""Gemma 2: Gemma2ForCausalLM. Gains are stored less one, every other layer has a window, logits are capped."""

from quantkit.arch import BLOCK, GATED, RMS_NORM, ROPE, SIZES, WINDOW, Architecture

_NORMS = (
    BLOCK + "input_layernorm.weight", BLOCK + "post_attention_layernorm.weight", BLOCK + "pre_feedforward_layernorm.weight",
    BLOCK + "post_feedforward_layernorm.weight", "model.norm.weight",
)  # fmt: skip

ARCH = Architecture(
    model_type="gemma2",
    model_class="Gemma2ForCausalLM",
    gguf="gemma2",
    tensors={name: dims for name, dims in GATED.items() if name != "lm_head.weight"}
    | dict.fromkeys(_NORMS, ("hidden",)),
    pairs={
        **SIZES, **RMS_NORM, **ROPE, **WINDOW, "attn_logit_softcapping": ("attn_logit_softcapping", "FLOAT32"),
        "final_logit_softcapping": ("final_logit_softcapping", "FLOAT32"),
    },
    defaults={
        "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "head_dim": 256, "tie_word_embeddings": True,
        "sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    shifted=_NORMS,
    named={
        BLOCK + "post_attention_layernorm.weight": "blk.{}.post_attention_norm.weight",
        BLOCK + "pre_feedforward_layernorm.weight": "blk.{}.ffn_norm.weight",
        BLOCK + "post_feedforward_layernorm.weight": "blk.{}.post_ffw_norm.weight",
    },
    ignored=("lm_head.weight",),
    fixed={"hidden_activation": ("gelu_pytorch_tanh", None), "attention_bias": (False,), "tie_word_embeddings": (True,)},
)  # fmt: skip
