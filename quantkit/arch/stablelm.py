"""StableLM: StableLmForCausalLM. Layer norms, part of each head is rotary, residuals may be parallel."""

from quantkit.arch import BLOCK, GATED, LAYER_NORM, ROPE, SIZES, UNTIED, Architecture

_BIASES = {
    BLOCK + f"self_attn.{name}_proj.bias": (width,) for name, width in zip("qkv", ("q_width", *2 * ["kv_width"]), strict=True)
}
_NORM_BIASES = {
    BLOCK + "input_layernorm.bias": ("hidden",),
    BLOCK + "post_attention_layernorm.bias": ("hidden",),
    "model.norm.bias": ("hidden",),
}
_HEAD_NORMS = {
    BLOCK + "self_attn.q_layernorm.norms.{}.weight": "heads",
    BLOCK + "self_attn.k_layernorm.norms.{}.weight": "kv_heads",
}

ARCH = Architecture(
    model_type="stablelm",
    model_class="StableLmForCausalLM",
    gguf="stablelm",
    tensors={**GATED, **_BIASES, **_NORM_BIASES, **dict.fromkeys(_HEAD_NORMS, ("head_dim",))},
    pairs={**SIZES, **LAYER_NORM, **ROPE, "use_parallel_residual": ("use_parallel_residual", "BOOL")},
    defaults={
        "layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25, "use_parallel_residual": False,
    },
    when={
        **UNTIED,
        **dict.fromkeys(_BIASES, ("use_qkv_bias", True)),
        **dict.fromkeys(_HEAD_NORMS, ("qk_layernorm", True)),
        BLOCK + "post_attention_layernorm.weight": ("use_parallel_residual", False),
        BLOCK + "post_attention_layernorm.bias": ("use_parallel_residual", False),
    },
    stacked=_HEAD_NORMS,
    named={name: f"blk.{{}}.attn_{which}_norm.weight" for name, which in zip(_HEAD_NORMS, "qk", strict=True)},
    fixed={"hidden_act": ("silu",)},
)  # fmt: skip
