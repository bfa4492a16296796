"""T5, T5 1.1 and Flan-T5: T5ForConditionalGeneration. Positions are a bias on attention, held by each stack's first block.

T5 multiplies what meets a tied head by hidden_size ** -0.5, T5 1.1 and Flan-T5 do not. llama.cpp's graph never does, so
the factor goes into the decoder's last norm, without which its logits are those of another temperature.
"""

from collections.abc import Mapping

from quantkit.arch import RMS_NORM, SIZES, Architecture

_ENCODER, _DECODER = "encoder.block.{}.layer.", "decoder.block.{}.layer."
_ATTENTION = {"q": ("q_width", "hidden"), "k": ("kv_width", "hidden"), "v": ("kv_width", "hidden"), "o": ("hidden", "q_width")}
_SELF, _CROSS = ({f"{name}.{part}": dims for part, dims in _ATTENTION.items()} for name in ("SelfAttention", "EncDecAttention"))
_UP, _DOWN = ("intermediate", "hidden"), ("hidden", "intermediate")
_FORWARD = {f"DenseReluDense.{part}": _DOWN if part == "wo" else _UP for part in ("wi", "wi_0", "wi_1", "wo")}
_KINDS = {"wi": "relu", "wi_0": "gated-gelu", "wi_1": "gated-gelu"}


def _layer(layer: str, matrices: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found = {f"{layer}{name}.weight": dims for name, dims in matrices.items()}
    return {**found, f"{layer}layer_norm.weight": ("hidden",)}


ARCH = Architecture(
    model_type="t5",
    model_class="T5ForConditionalGeneration",
    gguf="t5",
    kind="encoder-decoder",
    tensors={
        "shared.weight": ("vocab", "hidden"),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("buckets", "heads"),
        **_layer(_ENCODER + "0.", _SELF),
        **_layer(_ENCODER + "1.", _FORWARD),
        "encoder.final_layer_norm.weight": ("hidden",),
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("buckets", "heads"),
        **_layer(_DECODER + "0.", _SELF),
        **_layer(_DECODER + "1.", _CROSS),
        **_layer(_DECODER + "2.", _FORWARD),
        "decoder.final_layer_norm.weight": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
    },
    pairs={
        **SIZES, **RMS_NORM, "attention.layer_norm_epsilon": ("rms_norm_eps", "FLOAT32"),
        "decoder_block_count": ("num_decoder_layers", "UINT32"),
        "attention.relative_buckets_count": ("relative_attention_num_buckets", "UINT32"),
        "decoder_start_token_id": ("decoder_start_token_id", "UINT32"),
    },
    keys={
        "hidden_size": "d_model", "intermediate_size": "d_ff", "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads", "num_key_value_heads": "num_heads", "head_dim": "d_kv",
        "rms_norm_eps": "layer_norm_epsilon", "max_position_embeddings": "n_positions",
    },
    defaults={
        "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "head_dim": 64, "relative_attention_num_buckets": 32,
        "decoder_start_token_id": 0, "feed_forward_proj": "relu", "tie_word_embeddings": True,
    },
    implied=(
        ({"scale_decoder_outputs": None, "tie_word_embeddings": False}, {"scale_decoder_outputs": False}),
        ({"scale_decoder_outputs": None}, {"scale_decoder_outputs": True}),
    ),
    when={
        f"{layer}DenseReluDense.{part}.weight": ("feed_forward_proj", kind)
        for layer in (_ENCODER + "1.", _DECODER + "2.") for part, kind in _KINDS.items()
    },
    optional=("lm_head.weight",),
    moved={f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
    scaled=("decoder.final_layer_norm.weight",),
    ignored=("decoder.block.*.layer.1.EncDecAttention.relative_attention_bias.weight",),  # which T5 itself never reads
    fixed={"feed_forward_proj": ("relu", "gated-gelu"), "relative_attention_max_distance": (128,)},
    decoded={"scale_decoder_outputs": False, "is_encoder_decoder": True},
)  # fmt: skip
