"""Tiny random models of each kind of decoder, their weights in memory, and the llama one as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quantkit.values import F32, TensorInfo

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    "llama-rope-scaling": {
        **SMALL,
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {**SMALL, "model_type": "mistral", "sliding_window": 16},
    "qwen3": {**SMALL, "model_type": "qwen3", "head_dim": 16},
    "gemma3": {
        **SMALL,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "head_dim": 16,
        "sliding_window": 16,
        "final_logit_softcapping": 3.0,
    },
    "phi3": {**SMALL, "model_type": "phi3"},
    "granite": {**SMALL, "model_type": "granite", "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "opt": {
        "model_type": "opt",
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "vocab_size": 300,
        "max_position_embeddings": 128,
    },
}


class StateDict:
    """A checkpoint held in memory, which counts how much of it is out with a reader."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self.state = {name: tensor.numpy() for name, tensor in state.items()}
        self.reads: list[str] = []

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {name: TensorInfo(name, array.shape, "F32", array.nbytes) for name, array in self.state.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        self.reads.append(name)
        return np.array(self.state[name][start:stop], order="C")

    def close(self) -> None:
        self.state.clear()


def tiny(kind: str) -> tuple[dict[str, Any], Any, StateDict]:
    torch.manual_seed(7)
    config = CONFIGS[kind]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start as ones and zeros, which would hide a missing one
                parameter += 0.1 * torch.randn(parameter.shape)
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return config, model, StateDict(state)


_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
}


def gguf_name(name: str) -> str:
    """model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight"""
    parts = name.split(".")[1:-1]
    if parts[0] != "layers":
        return f"{_GGUF[parts[0]]}.weight"
    return f"blk.{parts[1]}.{_GGUF['.'.join(parts[2:])]}.weight"


def permuted(name: str, array: F32) -> F32:
    """Q and K rows in llama.cpp's rotary order."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return array
    halves = array.reshape(heads, 2, len(array) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def write_llama(path: Path, weights: Mapping[str, F32], kind: gguf.GGMLQuantizationType) -> None:
    """The tied tiny llama, matrices as `kind`, by gguf-py alone; its vocabulary is the bytes between control tokens."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    control = ["<pad>", "<s>", "</s>"]
    alphabet = [chr(index if chr(index).isprintable() and index != 32 else 256 + index) for index in range(256)]
    writer.add_token_list([*control, *alphabet, *(f"<unused{index}>" for index in range(41))])
    writer.add_token_types([3] * 3 + [1] * 256 + [5] * 41)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, array in weights.items():
        rows = permuted(name, array)
        stored = kind if rows.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(rows, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
