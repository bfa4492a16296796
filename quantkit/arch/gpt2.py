"""GPT-2: GPT2LMHeadModel. Matrices are stored (in, out); positions are learned."""

from quantkit.arch import LAYER_NORM, SIZES, UNTIED, Architecture

_BLOCK = "transformer.h.{}."
_MATRICES = {
    _BLOCK + "attn.c_attn.weight": ("hidden", "qkv_width"),
    _BLOCK + "attn.c_proj.weight": ("q_width", "hidden"),
    _BLOCK + "mlp.c_fc.weight": ("hidden", "intermediate"),
    _BLOCK + "mlp.c_proj.weight": ("intermediate", "hidden"),
}
_NORMS = (_BLOCK + "ln_1", _BLOCK + "ln_2", "transformer.ln_f")

ARCH = Architecture(
    model_type="gpt2",
    model_class="GPT2LMHeadModel",
    gguf="gpt2",
    tensors={
        "transformer.wte.weight": ("vocab", "hidden"),
        "transformer.wpe.weight": ("positions", "hidden"),
        **_MATRICES,
        **{name.replace("weight", "bias"): dims[1:] for name, dims in _MATRICES.items()},
        **{f"{name}.{part}": ("hidden",) for name in _NORMS for part in ("weight", "bias")},
        "lm_head.weight": ("vocab", "hidden"),
    },
    pairs={**SIZES, **LAYER_NORM},
    keys={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "num_key_value_heads": "n_head", "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    defaults={"layer_norm_eps": 1e-5, "ffn_factor": 4, "tie_word_embeddings": True},
    when=UNTIED,
    transposed=tuple(_MATRICES),
    ignored=("*.attn.bias",),
    fixed={
        "activation_function": ("gelu_new",), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    prefix="transformer.",
)  # fmt: skip
