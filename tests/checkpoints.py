"""Pico checkpoints, one or more per file in quantkit/arch/, and the same as shards or as a GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit import arch
from quantkit.codecs import gguf_config, gguf_kv, gguf_tensors, gguf_vocab
from quantkit.source.folder import INDEX, SINGLE
from quantkit.values import Snapshot

TEXT = (
    "The quick brown fox jumps over the lazy dog. It isn't 42 or 1,234.5; they've said we'll see.\n"
    "def f(x):\n    return {'a': x[0], \"b\": x**2}  # naïve café\n\tif x != 3:\n\t\tprint('No!!!', x)\n"
    "Привет, мир! Καλημέρα κόσμε. 你好，世界。 こんにちは世界 🙂🚀 مرحبا\n"
    "SELECT name, count(*) FROM users WHERE age >= 18 GROUP BY name;\n\n"
)

# Small enough for a second per model; hidden 256 is one K-quant super-block. Each `over` is what makes the case.
PICO: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama3": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "mistral": {"model_type": "mistral", "tie_word_embeddings": False, "head_dim": 32, "sliding_window": None},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 128},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "tie_word_embeddings": False, "head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 256, "norm_topk_prob": True,
    },
    "mixtral": {"model_type": "mixtral", "tie_word_embeddings": False, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {
        "model_type": "gemma2", "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 3,
        "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5,
    },
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "phi3": {"model_type": "phi3", "tie_word_embeddings": False, "sliding_window": None, "pad_token_id": 0},
    "phi3-long": {
        "model_type": "phi3", "tie_word_embeddings": True, "pad_token_id": 0, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            "short_factor": [1.0 + 0.02 * i for i in range(16)], "long_factor": [1.0 + 0.3 * i for i in range(16)],
        },
    },
    "olmo2": {"model_type": "olmo2", "tie_word_embeddings": False},
    "granite": {
        "model_type": "granite", "tie_word_embeddings": True, "attention_multiplier": 0.1, "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5, "logits_scaling": 2.0,
    },
    "starcoder2": {"model_type": "starcoder2", "tie_word_embeddings": True, "use_bias": True},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.25},
    "stablelm-12b": {"model_type": "stablelm", "qk_layernorm": True, "use_parallel_residual": True},
    "gpt2": {"model_type": "gpt2"},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.25},
    "gpt_neox-serial": {"model_type": "gpt_neox", "use_parallel_residual": False, "rotary_pct": 0.5},
    "falcon": {"model_type": "falcon", "multi_query": True, "num_kv_heads": 1, "bias": False},
    "falcon-heads": {"model_type": "falcon", "multi_query": False, "num_kv_heads": 4, "bias": False},
    "falcon-new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False},
    "falcon-one-norm": {
        "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False,
        "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False,
    },
    "bert": {"model_type": "bert", "num_key_value_heads": None},
    "bert-cls": {"model_type": "bert", "num_key_value_heads": None, "type_vocab_size": 1, "max_position_embeddings": 128},
    "t5": {
        "model_type": "t5", "d_ff": 512, "d_kv": 32, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
        "num_decoder_layers": 2,
    },
    "t5-1.1": {
        "model_type": "t5", "d_ff": 384, "d_kv": 64, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_hidden_layers": 3, "num_decoder_layers": 2,
    },
}  # fmt: skip
DECODERS, ENCODERS, TRANSDUCERS = (
    [name for name, settings in PICO.items() if arch.known()[settings["model_type"]].kind == kind]
    for kind in ("decoder", "encoder", "encoder-decoder")
)
_BART = {
    "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
UNMAPPED: dict[str, dict[str, Any]] = {
    "roberta": {"model_type": "roberta", "num_key_value_heads": None, "type_vocab_size": 1},
    "xlm-roberta": {"model_type": "xlm-roberta", "num_key_value_heads": None},
    "electra": {"model_type": "electra", "num_key_value_heads": None, "embedding_size": 128},
    "mpnet": {"model_type": "mpnet", "num_key_value_heads": None},
    "deberta-v2": {
        "model_type": "deberta-v2", "num_key_value_heads": None, "relative_attention": True, "position_buckets": 32,
        "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0,
    },
    "modernbert": {"model_type": "modernbert", "num_key_value_heads": None, "local_attention": 16},
    "distilbert": {"model_type": "distilbert", "dim": 256, "hidden_dim": 512, "n_layers": 2, "n_heads": 4},
    "bart": {"model_type": "bart", **_BART},
    "marian": {"model_type": "marian", **_BART, "pad_token_id": 0, "scale_embedding": True},
    "opt": {"model_type": "opt", "ffn_dim": 512, "word_embed_proj_dim": 256, "num_key_value_heads": None},
    "gemma": {"model_type": "gemma", "head_dim": 64},
    "olmo": {"model_type": "olmo", "tie_word_embeddings": False},
    "phi": {"model_type": "phi", "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "smollm3": {"model_type": "smollm3", "pad_token_id": 0},
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 4},
}  # fmt: skip
"""Those that are made ONNX of alone."""
POOLING = {"bert": "mean", "bert-cls": "cls"}
VOCABULARY = 512


def byte_level_tokenizer() -> Any:
    """A byte-level BPE of llama-bpe's kind, trained here: 512 entries with its three special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 3, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    return tokenizer


def wordpiece_tokenizer() -> Any:
    """A WordPiece of BERT's kind, trained here."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def unigram_tokenizer() -> Any:
    """A Unigram of T5's kind, trained here."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    end = [("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=end)
    return tokenizer


def make_pico(name: str, folder: Path, **over: Any) -> Path:
    """Save the pico checkpoint `name` of PICO into `folder`: random weights of a fixed seed, float32 safetensors. over: of its
    config."""
    import torch
    import transformers

    settings = (PICO | UNMAPPED)[name]
    kind = arch.find(settings).kind
    make, special = _TOKENIZERS[kind]
    tokenizer = make()
    ids = {key: tokenizer.token_to_id(token) for key, token in special.items()}
    config = transformers.AutoConfig.for_model(
        **{
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": max(VOCABULARY, tokenizer.get_vocab_size()),
            "max_position_embeddings": 2048,
            **{f"{key}_id": value for key, value in ids.items()},
            **settings,
            **over,
        }
    )
    torch.manual_seed(0)
    model = getattr(transformers, arch.AUTO_CLASS[kind]).from_config(config, dtype=torch.float32)
    if kind == "encoder-decoder" and settings.get("tie_word_embeddings") is False:  # which transformers 5 ties all the same
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Wider than the initial 0.02, and norms off one: else logits are so flat that a wrong graph passes.
            parameter.copy_(torch.randn_like(parameter) * (0.04 if parameter.ndim > 1 else 0.1))
            if parameter.ndim == 1 and not config.model_type.startswith("gemma"):  # which adds the one itself
                parameter.add_(1.0)
            if ".experts.down_proj" in key:  # an expert chosen otherwise after rounding must not decide the logits
                parameter.mul_(0.15)
            if kind == "encoder-decoder" and key.endswith("Attention.q.weight"):  # T5 leaves the scores' scale to them
                parameter.mul_(0.2)
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.copy_(torch.randn_like(buffer))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    if kind != "decoder":
        del said["chat_template"]
    if name in POOLING:
        save_pooling(folder, POOLING[name])
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=2), encoding="utf-8")
    title = f"pico {name}".replace("phi3", "fi3")  # llama.cpp wants Phi-3's own tokens where a name has phi3 in it
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\nmodel_name: {title}\n---\n", encoding="utf-8")
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n", encoding="utf-8")
    return folder


_SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_TOKENIZERS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "decoder": (byte_level_tokenizer, _SPECIAL),
    "encoder": (wordpiece_tokenizer, {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                                      "mask_token": "[MASK]"}),
    "encoder-decoder": (unigram_tokenizer, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}),
}  # fmt: skip
_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def save_pooling(folder: Path, how: str) -> None:
    """What sentence-transformers saves beside a model that pools by "mean" or "cls"."""
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")))
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    said = {"word_embedding_dimension": 256, "pooling_mode_cls_token": how == "cls", "pooling_mode_mean_tokens": how == "mean"}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said), encoding="utf-8")


def shard(place: Path) -> dict[str, str]:
    """Split model.safetensors in two with an index, as transformers does; returns the index's map."""
    import torch
    from safetensors.numpy import load_file
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(value) for name, value in load_file(place / SINGLE).items()}
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (at >= 9)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, place / file)
    (place / SINGLE).unlink()
    (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def stack_experts(source: Path, place: Path) -> Path:
    """A copy of qwen3_moe's checkpoint at `place` with a layer's experts in two tensors, as transformers' model has them."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, place)
    tensors = load_file(place / "model.safetensors")
    names = [name.split(".") for name in tensors if ".mlp.experts." in name]
    experts = sorted({int(parts[5]) for parts in names})
    for layer in sorted({parts[2] for parts in names}):
        stem = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            [tensors.pop(f"{stem}.{expert}.{part}_proj.weight") for expert in experts] for part in ("gate", "up", "down")
        )
        tensors[f"{stem}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)])
        tensors[f"{stem}.down_proj"] = torch.stack(down)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return place


def write_gguf(snapshot: Snapshot, path: Path) -> Path:
    """A checkpoint as an F32 GGUF by gguf-py's own writer: what quantkit's writer is held against, and reads back."""
    import gguf
    import numpy as np

    architecture = arch.find(snapshot.config)
    writer = gguf.GGUFWriter(path, architecture.gguf)
    if snapshot.name:
        writer.add_name(snapshot.name)
    gguf_kv.write(writer, gguf_config.encode(architecture, snapshot.config))
    if snapshot.tokenizer:
        gguf_kv.write(writer, gguf_vocab.encode(snapshot.tokenizer, snapshot.config, snapshot.generation_config))
    for name, values in gguf_config.extra_tensors(architecture, snapshot.config).items():
        writer.add_tensor(name, values)
    for name, placement in gguf_tensors.placements(architecture, snapshot.config, snapshot.weights.infos).items():
        values = gguf_tensors.read_ordered(snapshot.weights, placement, 0, placement.rows)
        writer.add_tensor(name, np.ascontiguousarray(values.reshape(placement.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
