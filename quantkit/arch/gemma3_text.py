"""Gemma 3, the language model: Gemma3ForCausalLM. As gemma2, with normalised queries and keys and no cap on attention."""

from quantkit.arch import BLOCK, GATED, RMS_NORM, ROPE, SIZES, WINDOW, Architecture

_NORMS = (
    BLOCK + "input_layernorm.weight", BLOCK + "post_attention_layernorm.weight", BLOCK + "pre_feedforward_layernorm.weight",
    BLOCK + "post_feedforward_layernorm.weight", "model.norm.weight",
)  # fmt: skip
_HEAD_NORMS = (BLOCK + "self_attn.q_norm.weight", BLOCK + "self_attn.k_norm.weight")

ARCH = Architecture(
    model_type="gemma3_text",
    model_class="Gemma3ForCausalLM",
    gguf="gemma3",
    tensors={name: dims for name, dims in GATED.items() if name != "lm_head.weight"}
    | dict.fromkeys(_NORMS, ("hidden",)) | dict.fromkeys(_HEAD_NORMS, ("head_dim",)),
    pairs={
        **SIZES, **RMS_NORM, **ROPE, **WINDOW, "rope.freq_base_swa": ("rope_local_base_freq", "FLOAT32"),
        "final_logit_softcapping": ("final_logit_softcapping", "FLOAT32"),
    },
    defaults={
        "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "head_dim": 256, "tie_word_embeddings": True,
        "sliding_window": 4096, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
    },
    shifted=_NORMS + _HEAD_NORMS,
    named={
        BLOCK + "post_attention_layernorm.weight": "blk.{}.post_attention_norm.weight",
        BLOCK + "pre_feedforward_layernorm.weight": "blk.{}.ffn_norm.weight",
        BLOCK + "post_feedforward_layernorm.weight": "blk.{}.post_ffw_norm.weight",
    },
    ignored=("lm_head.weight",),
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh", None), "attention_bias": (False,), "tie_word_embeddings": (True,),
        "attn_logit_softcapping": (None,), "use_bidirectional_attention": (False, None),
    },
)  # fmt: skip
