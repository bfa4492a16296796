"""Memory of a GPTQ checkpoint in transformers on a CPU: pure arithmetic on its rows and config.json.

The engine is the one of `quantkit.resident`: transformers' own model whose matrices are dequantised to bfloat16 when it is
loaded, a few rows at a time. The terms: two bytes of every weight; the cache in bfloat16, of a windowed layer its window
(transformers/cache_utils.py); what a forward of the whole prompt takes; buffers and code of torch that the first one touches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit import footprint
from quantkit.footprint import Memory, MiB
from quantkit.values import Row

PROCESS = 411 * MiB  # Python with torch and a transformers model class
LIBRARY = 40 * MiB  # what they touch with the first forward
SCORE_BYTES = 2 + 4 + 4


def dequantised(rows: Iterable[Row]) -> int:
    """Bytes of all weights in bfloat16."""
    return sum(2 * math.prod(row.shape) for row in rows)


def compute_buffer(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes that a forward of so many tokens takes besides weights and cache: the larger of two moments, inside a block
    (residual, normed and gate/up activations, or queries, keys and values) and at the logits, for whose one row oneDNN puts
    the head into another order. A layer with a window has a mask of its own, with which torch's attention writes its scores
    down: in bfloat16, and in float32 before and after the softmax.
    """
    d = footprint.dimensions(config)
    attention = 2 * d.hidden + (3 * d.heads + 2 * d.kv_heads) * d.head_dim
    scores = (3 + SCORE_BYTES * d.heads) * tokens * tokens if d.windowed_layers else 0
    block = max(2 * tokens * (2 * d.hidden + 4 * d.intermediate), 2 * tokens * attention + scores)
    return max(block, 2 * d.vocabulary * d.hidden)


def memory(nbytes: int, rows: Sequence[Row], config: Mapping[str, Any], contexts: Iterable[int]) -> list[Memory]:
    """Predicted memory with each context filled, in the order given. nbytes: of the files, which are read and left."""
    del nbytes
    d = footprint.dimensions(config)
    return [
        Memory(
            context,
            dequantised(rows),
            footprint.cache_bytes(config, context, min(context, d.window), "bf16"),
            compute_buffer(config, context),
            LIBRARY,
            PROCESS,
        )
        for context in contexts
    ]
