"""Qwen3 with experts in every layer: Qwen3MoeForCausalLM. GGUF stacks the experts' matrices."""

from quantkit.arch import BLOCK, EXPERTS, GATED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

_EXPERT = BLOCK + "mlp.experts.{}."

ARCH = Architecture(
    model_type="qwen3_moe",
    model_class="Qwen3MoeForCausalLM",
    gguf="qwen3moe",
    tensors={
        **{name: dims for name, dims in GATED.items() if ".mlp." not in name},
        BLOCK + "self_attn.q_norm.weight": ("head_dim",),
        BLOCK + "self_attn.k_norm.weight": ("head_dim",),
        BLOCK + "mlp.gate.weight": ("experts", "hidden"),
        _EXPERT + "gate_proj.weight": ("expert_intermediate", "hidden"),
        _EXPERT + "up_proj.weight": ("expert_intermediate", "hidden"),
        _EXPERT + "down_proj.weight": ("hidden", "expert_intermediate"),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE, **EXPERTS, "expert_feed_forward_length": ("moe_intermediate_size", "UINT32")},
    defaults={
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    when=UNTIED,
    stacked={_EXPERT + f"{name}_proj.weight": "experts" for name in ("gate", "up", "down")},
    fused={
        BLOCK + "mlp.experts.gate_up_proj": (_EXPERT + "gate_proj.weight", _EXPERT + "up_proj.weight"),
        BLOCK + "mlp.experts.down_proj": (_EXPERT + "down_proj.weight",),
    },
    fixed={
        "hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,), "norm_topk_prob": (True,),
        "mlp_only_layers": ([], None), "decoder_sparse_step": (1,),
    },
)  # fmt: skip
