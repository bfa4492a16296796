"""Phi-3 and Phi-4 (text): Phi3ForCausalLM. Queries, keys and values, and gate and up, are one matrix each, in GGUF too."""

from quantkit.arch import BLOCK, GATED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

_KEPT = ("embed_tokens", "input_layernorm", "o_proj", "post_attention_layernorm", "down_proj", "model.norm", "lm_head")

ARCH = Architecture(
    model_type="phi3",
    model_class="Phi3ForCausalLM",
    gguf="phi3",
    tensors={
        **{name: dims for name, dims in GATED.items() if any(part in name for part in _KEPT)},
        BLOCK + "self_attn.qkv_proj.weight": ("qkv_width", "hidden"),
        BLOCK + "mlp.gate_up_proj.weight": ("gate_up", "hidden"),
    },
    pairs={
        **SIZES, **RMS_NORM, **ROPE, "rope.scaling.original_context_length": ("original_max_position_embeddings", "UINT32"),
        "rope.scaling.attn_factor": ("rope_attention_factor", "FLOAT32"),
    },
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
    when=UNTIED,
    fixed={"hidden_act": ("silu",)},
)  # fmt: skip
