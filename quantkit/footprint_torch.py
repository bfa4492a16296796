"""Memory of a GPTQ checkpoint in transformers on a CPU: pure arithmetic on its rows and config.json.

The engine is the one of `quantkit.resident`: transformers' own model whose matrices are dequantised to bfloat16 when it is
loaded, a few rows at a time. The terms: two bytes of every weight; the cache in bfloat16; what a forward of the whole prompt
takes; buffers and code of torch that the first one touches. A layer with a window is no smaller at the peak: its short cache
is a view of the whole prompt's keys and values until the next token comes (transformers/cache_utils.py,
DynamicSlidingWindowLayer.update).

Which tensors live at a moment was read from torch's own record of allocations (llama and gemma3, torch 2.13, transformers
5.23). With AVX-512 torch gives bfloat16 to oneDNN, which puts a matrix into another order before it multiplies by it: of the
head that is seen at the peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit import footprint, skeleton
from quantkit.footprint import Memory, MiB
from quantkit.values import Row

PROCESS = 411 * MiB  # Python with torch and a transformers model class
LIBRARY = 16 * MiB  # what they touch with the first forward
ONEDNN = 8 * MiB  # oneDNN's own, besides


def dequantised(rows: Iterable[Row]) -> int:
    """Bytes of all weights in bfloat16."""
    return sum(2 * math.prod(row.shape) for row in rows)


def reading(rows: Iterable[Row]) -> int:
    """Bytes that the last large matrices take besides while they are read: a slab of float32, and the 16 bits or the packed and
    the unpacked codes that it is made of. The embedding comes first, when nothing else is there."""
    slab = skeleton.SLAB_BYTES // 4
    codes = [8 * min(slab, math.prod(row.shape)) for row in rows if row.type.startswith("W")]
    heads = [6 * min(slab, math.prod(row.shape)) for row in rows if row.name.startswith("lm_head")]
    return max(codes + heads, default=0)


def masked(config: Mapping[str, Any], tokens: int) -> bool:
    """Whether a prompt of so many tokens gets a mask: of a window that it fills (transformers/masking_utils.py); else
    torch's attention is told that it is causal."""
    config = config.get("text_config") or config
    window = config.get("sliding_window")
    if not window or not config.get("use_sliding_window", True):
        return False
    return tokens >= window and "sliding_attention" in (config.get("layer_types") or ["sliding_attention"])


def compute_buffer(config: Mapping[str, Any], tokens: int, *, onednn: bool = False) -> int:
    """Bytes that a forward of so many tokens takes besides weights and cache: the largest of three moments of a block.

    All through a block: embeddings, its input and what it was normed to. In the attention: keys and values and, while they
    are rotated, four times the queries; with a mask, queries, result, and keys and values of every one of their heads, and the
    mask in bfloat16. In the MLP: the residual, and gate, up and their product. onednn: a third at the logits, whose head is
    put into another order. A mask is one byte a pair of tokens for as long as the forward lasts.
    """
    d = footprint.dimensions(config)
    queries, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    pairs = tokens * tokens if masked(config, tokens) else 0
    attention = 2 * tokens * (3 * d.hidden + 4 * queries + (0 if pairs else 2 * keys)) + 2 * pairs
    mlp = 2 * tokens * (4 * d.hidden + 3 * d.intermediate)
    head = 2 * d.vocabulary * d.hidden if onednn else 0
    return pairs + max(attention, mlp, head)


def memory(
    rows: Sequence[Row], config: Mapping[str, Any], contexts: Iterable[int], *, instruction_sets: Iterable[str] = ()
) -> list[Memory]:
    """Predicted memory with each context filled, in the order given. The files themselves are read and left; for a short
    prompt the peak may lie there.

    `instruction_sets` are named as report/machine.py names them.
    """
    onednn = "AVX512F" in instruction_sets
    overhead, read, found = LIBRARY + (ONEDNN if onednn else 0), reading(rows), []
    for context in contexts:
        cache = footprint.cache_bytes(config, context, context, "bf16")
        run = compute_buffer(config, context, onednn=onednn)
        found.append(Memory(context, dequantised(rows), cache, max(run, read - cache), overhead, PROCESS))
    return found
