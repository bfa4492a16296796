"""Mixtral: MixtralForCausalLM. GGUF runs it as "llama" with experts, and stacks their matrices."""

from quantkit.arch import BLOCK, EXPERTS, GATED, PAIRED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

_EXPERT = BLOCK + "block_sparse_moe.experts.{}."

ARCH = Architecture(
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    gguf="llama",
    tensors={
        **{name: dims for name, dims in GATED.items() if ".mlp." not in name},
        BLOCK + "block_sparse_moe.gate.weight": ("experts", "hidden"),
        _EXPERT + "w1.weight": ("intermediate", "hidden"),
        _EXPERT + "w3.weight": ("intermediate", "hidden"),
        _EXPERT + "w2.weight": ("hidden", "intermediate"),
    },
    pairs={**SIZES, **RMS_NORM, **ROPE, **EXPERTS, "vocab_size": ("vocab_size", "UINT32")},
    keys={"num_experts": "num_local_experts"},
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "num_experts": 8, "num_experts_per_tok": 2},
    when=UNTIED,
    stacked={_EXPERT + f"{name}.weight": "experts" for name in ("w1", "w2", "w3")},
    fused={
        BLOCK + "mlp.experts.gate_up_proj": (_EXPERT + "w1.weight", _EXPERT + "w3.weight"),
        BLOCK + "mlp.experts.down_proj": (_EXPERT + "w2.weight",),
    },
    moved={BLOCK + "mlp.gate.weight": BLOCK + "block_sparse_moe.gate.weight"},
    permuted=PAIRED,
    fixed={"hidden_act": ("silu",)},
)
