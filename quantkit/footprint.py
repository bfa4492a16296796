"""Memory and speed limits of a model by format, context and engine: pure arithmetic on numbers, no file is opened.

llama.cpp's terms were fitted to, and checked against, the buffer sizes that it prints and the peak RSS of child
processes (llama-cpp-python 0.3.36 on x86-64; two models, of 49,152 and 128,256 tokens; contexts 512 to 1,048,576).
The slow test of `tests/test_footprint.py` repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from quantkit import arch
from quantkit.errors import UnsupportedError
from quantkit.values import Row

MiB = 1 << 20
GiB = 1 << 30

UBATCH = 512  # llama.cpp computes a prompt in micro-batches of this many tokens: its own default
LLAMA_CPP_PROCESS = 42 * MiB  # Python, NumPy and llama.cpp's libraries
LLAMA_CPP_LIBRARY = 4 * MiB  # thread stacks and the graph, after loading
TOKENIZER_BYTES = 347  # per vocabulary entry, its merge included; measured at 49,152 and 128,256 entries
WORDPIECE_BYTES = 134  # of an encoder's, which has no merges; measured at 30,522 entries

MACHINES = (8, 12, 16, 24, 32, 64)  # GiB
OS_RESERVE = 2 * GiB  # kept for the operating system and little else

# Types that llama.cpp copies into a layout of its own at load (the CPU_REPACK buffer, beside the mapped file), with
# what the number of rows must be divisible by. Source: ggml_repack_get_optimal_repack_type in
# ggml/src/ggml-cpu/repack.cpp; for Q8_0, Q5_K and Q6_K on ARM, llama.cpp pull requests 18096, 19356 and 19360.
# Measured: Q4_0, Q4_K and IQ4_NL on AVX2.
_REPACKED: Mapping[str, Mapping[str, int]] = {
    "AVX2": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8},
    "AVX512F": {"Q2_K": 8},
    "DOTPROD": {"Q4_0": 4, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8},
}

# Model types whose sliding-window layers llama.cpp keeps in a short cache. mistral and qwen2 are not among them: every
# layer of theirs gets the whole context, whatever `sliding_window` says.
_WINDOWED = frozenset({"cohere2", "exaone4", "gemma2", "gemma3", "gemma3_text", "gpt_oss", "olmo3"})


KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
KV_BYTES: Mapping[KvType, float] = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of a number of the cache: llama.cpp's f16 by default, its blocks of 32 with a scale; f32 of ONNX graphs."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The numbers of a decoder's config.json that memory depends on."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    windowed_layers: int
    window: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Predicted memory of an artefact in its engine at one context length, bytes; a MemoryRecord's fields.

    process: before the model is loaded. overhead: what the engine takes besides, second copies of weights among it.
    """

    context: int
    weights: int
    kv_cache: int
    compute: int
    overhead: int
    process: int

    @property
    def growth(self) -> int:
        """What the model adds to the process."""
        return self.weights + self.kv_cache + self.compute + self.overhead

    @property
    def total(self) -> int:
        return self.growth + self.process


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Read a Hugging Face config (its `text_config` where it has one). UnsupportedError names the keys it lacks."""
    config = config.get("text_config") or config
    known = arch.get(config)
    config = arch.standard(known, config) if known else config
    required = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
    missing = [key for key in required if not isinstance(config.get(key), int)]
    if missing:
        raise UnsupportedError(
            f"config.json of model type {config.get('model_type')!r} has no whole number under {', '.join(missing)}; "
            "its memory cannot be estimated. Complete config.json, or use an architecture that has them"
        )
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    kinds = config.get("layer_types") or ()
    windowed = config.get("model_type") in _WINDOWED and config.get("sliding_window")
    return Dimensions(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        heads=heads,
        kv_heads=max(kv_heads) if isinstance(kv_heads, Sequence) else kv_heads or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        windowed_layers=sum(kind == "sliding_attention" for kind in kinds) if windowed else 0,
        window=int(config["sliding_window"]) if windowed else 0,
    )


def padded(tokens: int) -> int:
    """The context that llama.cpp makes for so many tokens: its cache grows in steps of 256."""
    return -(-tokens // 256) * 256


def kv_cache(config: Mapping[str, Any], context: int, kind: KvType = "f16") -> int:
    """Bytes of llama.cpp's keys and values at `context`: full layers hold all, windowed ones the window and a micro-batch."""
    if _kind(config) == "encoder":  # a text passes at once
        return 0
    d = dimensions(config)
    full = padded(context)
    return cache_bytes(decoder(config), full, min(full, padded(d.window + UBATCH)), kind)


def decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of an encoder-decoder the numbers of its decoder, which alone has a cache; of others what is given."""
    known = arch.get(config)
    if known is None or known.kind != "encoder-decoder":
        return config
    full = arch.standard(known, config)
    layers = known.keys.get("num_hidden_layers", "num_hidden_layers")
    return {**config, layers: full.get("num_decoder_layers", full["num_hidden_layers"])}


def _kind(config: Mapping[str, Any]) -> arch.Kind:
    known = arch.get(config)
    return known.kind if known else "decoder"


def cache_bytes(config: Mapping[str, Any], full: int, short: int, kind: KvType) -> int:
    """Bytes of a cache of `full` tokens in every layer, of `short` ones where the layer's window is honoured.

    Grouped heads, heads by layer (a list under num_key_value_heads, as of llama.cpp's head_count_kv) and DeepSeek's latent:
    where kv_lora_rank is given, a token is that many numbers and a rotary key, for all heads and for keys and values alike.
    """
    config = config.get("text_config") or config
    d = dimensions(config)
    heads = config.get("num_key_value_heads")
    heads = list(heads) if isinstance(heads, Sequence) else [d.kv_heads] * d.layers
    if "kv_lora_rank" in config:
        widths = [int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"])] * d.layers
    else:
        widths = [2 * count * d.head_dim for count in heads]
    kinds = list(config.get("layer_types") or ()) if d.windowed_layers else []
    windowed = [kind == "sliding_attention" for kind in kinds] or [False] * d.layers
    numbers = sum(width * (short if narrow else full) for width, narrow in zip(widths, windowed, strict=True))
    return int(numbers * KV_BYTES[kind])


def compute_buffer(config: Mapping[str, Any], context: int, outputs: int = 1) -> int:
    """Bytes of llama.cpp's compute and output buffers that a run touches.

    The larger of two moments counts: inside a block (residual, normed and gate/up activations in float32, the
    attention mask in float16), and at the logits. `outputs` is how many tokens of a batch get logits: 1 in
    generation, all of them in a perplexity run. llama.cpp always reserves addresses for all of them; pages never
    written take no memory.

    An encoder reads its whole text at once, and the engine has room for logits of all of it, which it clears. T5's attention,
    which has biases, is not fused: its scores are there three times over.
    """
    d, kind = dimensions(config), _kind(config)
    if kind != "decoder":
        fused = kind == "encoder"
        inside = context * (d.intermediate + (3 if fused else 4) * d.hidden + d.vocabulary + d.hidden)
        return 4 * inside + context**2 * (2 if fused else 4 * (3 * d.heads + 2))
    block = UBATCH * (4 * (4 * d.hidden + 3 * d.intermediate) + 2 * padded(context))
    logits = 4 * (outputs * d.vocabulary + 2 * UBATCH * d.hidden)
    return max(block, logits) + 4 * outputs * d.vocabulary


def repacked(rows: Iterable[Row], instruction_sets: Iterable[str]) -> int:
    """Bytes of the second copy that llama.cpp makes of matrices whose type has a faster layout on this CPU.

    The token embedding is copied only where it is the output matrix too. The mapped file stays resident beside the copy
    (llama.cpp issue 16761).
    """
    rows = tuple(rows)
    steps = {type: step for isa in instruction_sets for type, step in _REPACKED.get(isa, {}).items()}
    untied = any(row.name == "output.weight" for row in rows)
    return sum(
        row.nbytes
        for row in rows
        if len(row.shape) >= 2
        and row.type in steps
        and row.shape[-2] % steps[row.type] == 0
        and not (row.name == "token_embd.weight" and untied)
    )


def memory(
    nbytes: int,
    rows: Sequence[Row],
    config: Mapping[str, Any],
    contexts: Iterable[int],
    *,
    instruction_sets: Iterable[str] = (),
    outputs: int = 1,
) -> list[Memory]:
    """Predicted memory of a GGUF file of `nbytes` in llama.cpp with each context filled, in the order given.

    `instruction_sets` are named as report/machine.py names them.
    """
    entry = WORDPIECE_BYTES if _kind(config) == "encoder" else TOKENIZER_BYTES
    overhead = LLAMA_CPP_LIBRARY + entry * dimensions(config).vocabulary + repacked(rows, instruction_sets)
    return [
        Memory(
            context=context,
            weights=nbytes,
            kv_cache=kv_cache(config, context),
            compute=compute_buffer(config, context, outputs=outputs),
            overhead=overhead,
            process=LLAMA_CPP_PROCESS,
        )
        for context in contexts
    ]


def standard_contexts(limit: int) -> list[int]:
    """The contexts that a report shows: powers of two from 512 up to the model's own limit, and the limit."""
    powers = [1 << n for n in range(9, 24) if 1 << n < limit]
    return [*powers, limit]


def within(contexts: Iterable[int], limit: int) -> list[int]:
    """As many contexts as asked for, as far as the model goes: in place of longer ones its limit, half of it, a quarter."""
    asked = set(contexts)
    found = {context for context in asked if context <= limit}
    shorter = (limit >> step for step in range(limit.bit_length()))
    return sorted(found | set(islice((context for context in shorter if context not in found), len(asked) - len(found))))


def machine_classes(totals: Mapping[int, int]) -> dict[int, int | None]:
    """Machine size in GiB -> largest context of `totals` (context -> bytes) that fits beside OS_RESERVE; or None."""
    return {
        size: max((context for context, total in totals.items() if total <= size * GiB - OS_RESERVE), default=None)
        for size in MACHINES
    }


def bytes_per_token(nbytes: Mapping[str, int]) -> int:
    """Bytes of weights that decoding one token reads: every tensor (name -> bytes) but an untied embedding."""
    embedding = nbytes.get("token_embd.weight", 0) if "output.weight" in nbytes else 0
    return sum(nbytes.values()) - embedding


def decode_ceiling(bandwidth: float, bytes_per_token: float) -> float:
    """Tokens/s that a memory bandwidth (bytes/s) allows; real runs on CPUs reach 55 to 80 % of it."""
    return bandwidth / bytes_per_token


def prefill_ceiling(flops: float, weights: int, instruction_sets: Iterable[str]) -> float:
    """Tokens/s of a long prompt that a throughput of float32 products (operations/s) allows: two operations a weight.

    Engines multiply quantised weights in 8 bits: with a dot product of its own for them (VNNI, DOTPROD, AMX) four times as
    many in an instruction, without one twice.
    """
    fast = any(isa.startswith(("AVX512-VNNI", "AVX-VNNI", "DOTPROD", "AMX")) for isa in instruction_sets)
    return (4 if fast else 2) * flops / (2 * max(weights, 1))
