"""StarCoder2: Starcoder2ForCausalLM. Biases everywhere, layer norms, a plain feed-forward."""

from quantkit.arch import BLOCK, LAYER_NORM, ROPE, SIZES, UNTIED, Architecture

_WEIGHTS = {
    BLOCK + "self_attn.q_proj": ("q_width", "hidden"),
    BLOCK + "self_attn.k_proj": ("kv_width", "hidden"),
    BLOCK + "self_attn.v_proj": ("kv_width", "hidden"),
    BLOCK + "self_attn.o_proj": ("hidden", "q_width"),
    BLOCK + "mlp.c_fc": ("intermediate", "hidden"),
    BLOCK + "mlp.c_proj": ("hidden", "intermediate"),
    BLOCK + "input_layernorm": ("hidden",),
    BLOCK + "post_attention_layernorm": ("hidden",),
    "model.norm": ("hidden",),
}
_BIASES = {f"{name}.bias": dims[:1] for name, dims in _WEIGHTS.items()}

ARCH = Architecture(
    model_type="starcoder2",
    model_class="Starcoder2ForCausalLM",
    gguf="starcoder2",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        **{f"{name}.weight": dims for name, dims in _WEIGHTS.items()},
        **_BIASES,
        "lm_head.weight": ("vocab", "hidden"),
    },
    pairs={**SIZES, **LAYER_NORM, **ROPE},
    keys={"layer_norm_eps": "norm_epsilon"},
    defaults={
        "layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "use_bias": True, "tie_word_embeddings": True,
        "num_key_value_heads": 2,
    },
    when=UNTIED | {name: ("use_bias", True) for name in _BIASES if "norm" not in name},
    fixed={"hidden_act": ("gelu_pytorch_tanh",)},
)  # fmt: skip
