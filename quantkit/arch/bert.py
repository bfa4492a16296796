"""BERT: BertModel, as an encoder of texts (MiniLM, bge, e5, gte). GGUF has neither pooler nor heads."""

from quantkit.arch import LAYER_NORM, SIZES, Architecture

_BLOCK = "encoder.layer.{}."
_MATRICES = {
    _BLOCK + "attention.self.query": ("q_width", "hidden"),
    _BLOCK + "attention.self.key": ("kv_width", "hidden"),
    _BLOCK + "attention.self.value": ("kv_width", "hidden"),
    _BLOCK + "attention.output.dense": ("hidden", "q_width"),
    _BLOCK + "intermediate.dense": ("intermediate", "hidden"),
    _BLOCK + "output.dense": ("hidden", "intermediate"),
}
_NORMS = ("embeddings.LayerNorm", _BLOCK + "attention.output.LayerNorm", _BLOCK + "output.LayerNorm")
_OLD_NAMES = {"weight": "gamma", "bias": "beta"}  # of a norm, in checkpoints that came from TensorFlow

ARCH = Architecture(
    model_type="bert",
    model_class="BertModel",
    gguf="bert",
    kind="encoder",
    tensors={
        "embeddings.word_embeddings.weight": ("vocab", "hidden"),
        "embeddings.position_embeddings.weight": ("positions", "hidden"),
        "embeddings.token_type_embeddings.weight": ("token_types", "hidden"),
        **{f"{name}.weight": dims for name, dims in _MATRICES.items()},
        **{f"{name}.bias": dims[:1] for name, dims in _MATRICES.items()},
        **{f"{name}.{part}": ("hidden",) for name in _NORMS for part in _OLD_NAMES},
    },
    pairs={
        **SIZES, **LAYER_NORM, "attention.causal": ("is_causal", "BOOL"), "pooling_type": ("pooling_type", "UINT32"),
    },
    defaults={
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2, "tie_word_embeddings": True,
        "is_causal": False,
    },
    moved={f"{name}.{old}": f"{name}.{part}" for name in _NORMS for part, old in _OLD_NAMES.items()},
    ignored=("*pooler.dense.*", "cls.predictions.*", "cls.seq_relationship.*", "*embeddings.position_ids"),
    fixed={
        "hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,), "is_causal": (False,),
        "add_cross_attention": (False,),
    },
    prefix="bert.",
)  # fmt: skip
