"""GPT-NeoX and Pythia: GPTNeoXForCausalLM. Queries, keys and values are one matrix, head by head."""

from quantkit.arch import LAYER_NORM, ROPE, SIZES, Architecture

_BLOCK = "gpt_neox.layers.{}."
_MATRICES = {
    _BLOCK + "attention.query_key_value": ("qkv_width", "hidden"),
    _BLOCK + "attention.dense": ("hidden", "q_width"),
    _BLOCK + "mlp.dense_h_to_4h": ("intermediate", "hidden"),
    _BLOCK + "mlp.dense_4h_to_h": ("hidden", "intermediate"),
}
_NORMS = (_BLOCK + "input_layernorm", _BLOCK + "post_attention_layernorm", "gpt_neox.final_layer_norm")

ARCH = Architecture(
    model_type="gpt_neox",
    model_class="GPTNeoXForCausalLM",
    gguf="gptneox",
    tensors={
        "gpt_neox.embed_in.weight": ("vocab", "hidden"),
        **{f"{name}.weight": dims for name, dims in _MATRICES.items()},
        **{f"{name}.bias": dims[:1] for name, dims in _MATRICES.items()},
        **{f"{name}.{part}": ("hidden",) for name in _NORMS for part in ("weight", "bias")},
        "embed_out.weight": ("vocab", "hidden"),
    },
    pairs={**SIZES, **LAYER_NORM, **ROPE, "use_parallel_residual": ("use_parallel_residual", "BOOL")},
    keys={"num_key_value_heads": "num_attention_heads", "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    defaults={
        "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "partial_rotary_factor": 0.25, "use_parallel_residual": True,
    },
    moved={"lm_head.weight": "embed_out.weight"},
    grouped=(_BLOCK + "attention.query_key_value.weight", _BLOCK + "attention.query_key_value.bias"),
    ignored=("*.attention.rotary_emb.*",),
    fixed={"hidden_act": ("gelu",), "tie_word_embeddings": (False,), "attention_bias": (True,)},
)  # fmt: skip
