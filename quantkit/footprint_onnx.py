"""Memory of an ONNX decoder in onnxruntime-genai: pure arithmetic on its rows and config.json.

The terms, in the order in which they come to be (onnxruntime 1.32, onnxruntime-genai 0.18, x86-64, by child processes):
tensors of the data file; copies that MatMulNBits makes of what it multiplies by (contrib_ops/cpu/quantization/matmul_nbits.cc:
codes in another order, and of every block its scale and its sum, while the file's scales stay mapped; the file's codes are
let go where nothing else looks at them, which a tied embedding does); the cache in float32, once and for the whole context;
what a chunk of the prompt takes, float32: logits after each of its tokens and, because the arena hands out by size and gives
nothing back, about every value that one block of the graph makes. Attention keeps no scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit import footprint
from quantkit.footprint import Memory, MiB
from quantkit.values import Row

CHUNK = 512  # tokens of a prompt that run at once: genai_config.json's search.chunk_size
PROCESS = 55 * MiB  # Python, NumPy and the libraries
LIBRARY = 23 * MiB  # what they touch with the first model: code, the graph, threads
_PER_HIDDEN, _PER_INTERMEDIATE = 8, 5  # values of a block that the arena holds, per token


def packed(rows: Iterable[Row], vocabulary: int) -> int:
    """Bytes that blocks of codes take beside their rows: two float32 of every block that is multiplied by, and the codes again
    of an embedding that is the head too; one of its own is only looked up."""
    blocks = [row for row in rows if _block(row) is not None]
    tables = [row for row in blocks if row.shape[0] == vocabulary]
    shared = codes(tables[0]) if len(tables) == 1 else 0
    return shared + sum(_sums(row) for row in blocks) - sum(_sums(row) for row in tables[1:])


def compute_buffer(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes that a forward of so many tokens takes besides weights and cache."""
    d = footprint.dimensions(config)
    heads = (d.heads + 2 * d.kv_heads) * d.head_dim
    return 4 * tokens * (d.vocabulary + _PER_INTERMEDIATE * d.intermediate + heads + _PER_HIDDEN * d.hidden)


def memory(nbytes: int, rows: Sequence[Row], config: Mapping[str, Any], contexts: Iterable[int]) -> list[Memory]:
    """Predicted memory with each context filled, in the order given. nbytes: of the graph and its data, documents apart.

    While the model is loaded, the largest matrix is held twice; the peak may lie there for a short prompt.
    """
    largest = max((codes(row) for row in rows), default=0)
    overhead = LIBRARY + packed(rows, footprint.dimensions(config).vocabulary)
    found = []
    for context in contexts:
        cache = footprint.cache_bytes(config, context, context, "f32")
        run = compute_buffer(config, min(context, CHUNK))
        found.append(Memory(context, nbytes, cache, max(run, largest - cache), overhead, PROCESS))
    return found


def _block(row: Row) -> int | None:
    """Columns that share a scale, of a row of blocks: INT8B32, INT4B32Z."""
    columns = row.type.partition("B")[2].removesuffix("Z")
    return int(columns) if row.type.startswith("INT") and columns.isdigit() else None


def _sums(row: Row) -> int:
    return 8 * math.prod(row.shape) // (_block(row) or 1)


def codes(row: Row) -> int:
    """Bytes of the codes of a row of blocks, 0 of another."""
    if _block(row) is None:
        return 0
    bits = int(row.type.removeprefix("INT").partition("B")[0])
    return math.prod(row.shape) * bits // 8
