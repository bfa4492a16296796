"""Memory of the graphs that transformers' exporter makes, in onnxruntime itself: pure arithmetic on rows and config.json.

The terms were fitted to child processes (onnxruntime 1.32, x86-64, texts of 16 to 2,048 tokens, one at a time; BERT, RoBERTa,
DeBERTa v2, T5, BART, GPT-2 and GPT-NeoX of four to twelve heads). Every session reads its weights into memory of its own, so
that two decoders of one model hold everything twice. Scores are materialised, and the arena hands out by size, in steps of two
to the power of n, and gives nothing back: a forward takes several times what lives at its widest moment, how many depends on
where the steps fall. The prediction is their middle; most of what was measured lies within 10 % of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit import arch, footprint, footprint_onnx
from quantkit.footprint import Memory, MiB
from quantkit.values import Row

PROCESS = 55 * MiB  # Python, NumPy and the library
LIBRARY, DECODER_GRAPH = 12 * MiB, 3 * MiB  # what it touches with the first model, and with every decoder's graph

# What the arena holds, in float32 numbers: per token and intermediate value; per token and position, masks and what they are
# made of; per token, position and head, scores and what becomes of them, with relative positions also what finds those.
_PER_INTERMEDIATE = 1.4
_MASKS = 5
_SCORES, _DECODER_SCORES = 4.5, 2.4
_RELATIVE_SCORES: Mapping[str, float] = {"t5": 7.4, "deberta-v2": 18.5}


def compute_buffer(config: Mapping[str, Any], tokens: int, kind: arch.Kind) -> int:
    """Bytes that the forward of a text of so many tokens takes besides weights and one cache: of a decoder the logits after
    each of them, and the cache again, with a token more."""
    d = footprint.dimensions(config)
    inside = _PER_INTERMEDIATE * d.intermediate * tokens
    if kind == "decoder":
        cache = footprint.cache_bytes(config, tokens, tokens, "f32")
        return cache + int(4 * (inside + tokens * d.vocabulary + _DECODER_SCORES * d.heads * tokens**2))
    scores = _RELATIVE_SCORES.get(str(config.get("model_type")), _SCORES)
    return int(4 * (inside + (scores * d.heads + _MASKS) * tokens**2))


def copies(rows: Iterable[Row], kind: arch.Kind, vocabulary: int) -> int:
    """Bytes of weights beside their rows: what further sessions hold again, and what MatMulNBits makes of a decoder's."""
    rows = tuple(rows)
    if kind == "encoder":
        return 0
    if kind == "decoder":
        return footprint_onnx.packed(rows, vocabulary)
    decoders = 1 if any("decoder_model_merged/" in row.name for row in rows) else 2
    head = max((footprint_onnx.codes(row) for row in rows if row.shape[:1] == (vocabulary,)), default=0)
    again = sum(row.nbytes * (_sessions(row.name, decoders) - 1) for row in rows)
    return again + decoders * (head + DECODER_GRAPH)


def _sessions(name: str, decoders: int) -> int:
    """How many sessions of an encoder-decoder hold a row: its graph's alone, or by the half of the model that it is of."""
    if "/" in name:
        return 1
    if "decoder" in name:
        return decoders
    return 1 if "encoder" in name else 1 + decoders


def memory(
    nbytes: int, rows: Sequence[Row], config: Mapping[str, Any], contexts: Iterable[int], *, kind: arch.Kind
) -> list[Memory]:
    """Predicted memory with each context filled, in the order given. nbytes: of the graphs and their data, documents apart.

    While it is loaded a decoder's largest matrix is held twice, an encoder's three times: its weights lie in the graph's file.
    """
    held = {"decoder": 1, "encoder": 2, "encoder-decoder": 0}[kind]
    largest = held * max((footprint_onnx.codes(row) for row in rows), default=0)
    overhead = LIBRARY + copies(rows, kind, footprint.dimensions(config).vocabulary)
    found = []
    for context in contexts:
        cache = 0 if kind == "encoder" else footprint.cache_bytes(footprint.decoder(config), context, context, "f32")
        run = compute_buffer(config, context, kind)
        found.append(Memory(context, nbytes, cache, max(run, largest - cache), overhead, PROCESS))
    return found
