"""Mistral: MistralForCausalLM. GGUF runs it as "llama"."""

from quantkit.arch import GATED, PAIRED, RMS_NORM, ROPE, SIZES, UNTIED, Architecture

ARCH = Architecture(
    model_type="mistral",
    model_class="MistralForCausalLM",
    gguf="llama",
    tensors=GATED,
    pairs={**SIZES, **RMS_NORM, **ROPE, "vocab_size": ("vocab_size", "UINT32")},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 131072},
    when=UNTIED,
    permuted=PAIRED,
    fixed={"hidden_act": ("silu",)},
)
