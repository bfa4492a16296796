"""Memory of a run while it makes and checks artefacts: pure arithmetic, no file is opened.

Constants are those of child processes on x86-64 (benchmarks/bench_plan.py has plans beside runs).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from quantkit import footprint
from quantkit.footprint import Dimensions, GiB, MiB
from quantkit.values import Row

QUANTIZER_PROCESS = 57 * MiB  # Python, NumPy, llama.cpp's libraries and what reads an importance matrix
RUN_PROCESS = 182 * MiB  # Python with what every run imports: NumPy, SciPy, numba's compiler, gguf, tokenizers
VOCABULARY_BYTES = 1730  # per entry: a tokenizer's documents as Python holds them, and its engine
KERNELS = 44 * MiB  # code that is mapped or linked when the first tensor is worked on
TORCH_LIBRARIES = 277 * MiB  # torch, transformers, accelerate and a model class, beside the run's process
ONNX_LIBRARIES = 92 * MiB  # onnxruntime, onnx_ir and the graph builder, beside torch
GRAPH, LAYER_OF_GRAPH = 36 * MiB, 3 * MiB  # nodes and recorded parameters of an ONNX graph that is being written
LLAMA_CPP_CHECKS = 64 * MiB  # gguf-py, llama.cpp and Jinja in a run's process, and what reading a file and answering leave
POOLED = 4 << 20  # bytes; a smaller block stays with its thread's pool when it is freed, until `memory.release`
THREAD = 2 * MiB  # stack of a sequence that waits, and what is left of its pool


def process_memory(vocabulary: int, *, torch: bool, onnx: bool) -> int:
    """Of a run before it works on a tensor: what it has loaded, and the tokenizer of so many entries."""
    libraries = RUN_PROCESS + KERNELS + (torch or onnx) * TORCH_LIBRARIES + onnx * ONNX_LIBRARIES
    return libraries + VOCABULARY_BYTES * vocabulary


def conversion_memory(rows: Iterable[Row], *, slab_weights: int, threads: int, ahead: int = 0) -> dict[str, int]:
    """Peak RAM of writing a GGUF beyond the process, by term (their sum is the estimate): a tensor, and before it another or
    small ones of `ahead` bytes; every thread holds a slab of float32 weights and as much again for the search of scales."""
    rows = tuple(rows)
    sizes = [row.nbytes for row in rows]
    places = zip(sizes, (0, *sizes), accumulate(sizes, initial=0), strict=False)
    slabs = threads * 4 * min(slab_weights, max((math.prod(row.shape) for row in rows), default=0))
    encoded = max((size + max(last, min(ahead, done)) for size, last, done in places), default=0)
    return {"float32 slabs": slabs, "encoder scratch": slabs, "encoded tensors": encoded}


def quantizer_memory(rows: Iterable[Row]) -> dict[str, int]:
    """Peak RAM of llama.cpp's quantiser on an F16 file, by term (their sum is the estimate): one tensor at a time, as it is
    stored, as float32 and encoded. Measured on SmolLM2: 9 % too high.
    """
    largest = max((math.prod(row.shape) for row in rows), default=0)
    return {
        "process": QUANTIZER_PROCESS,
        "stored tensor": 2 * largest,
        "float32 tensor": 4 * largest,
        "encoded tensor": 2 * largest,
    }


def walk_memory(
    config: Mapping[str, Any], sequences: int, length: int, micro_batch: int, *, threads: int = 1
) -> dict[str, int]:
    """Peak RAM of the block-by-block walk beyond the process, by term (their sum is the estimate), float32 throughout.

    Hidden states of all tokens three times: the embedding's output, which the model's forward keeps, a layer's input and its
    output. The last norm holds five copies, when the block is gone; of the embedding a slab is read at a time, and the rows
    that the tokens meet are kept. Every thread has a micro-batch, whose activations stay with its pool, freed or not.
    """
    d = footprint.dimensions(config)
    states, tokens = 4 * sequences * length * d.hidden, micro_batch * length
    terms = {
        "one block": _block(d),
        "hidden states": 3 * states,
        "activations": threads * 4 * tokens * (18 * d.hidden + 4 * d.intermediate),
        "attention scores": threads * 4 * tokens * length * d.heads,
    }
    met = 4 * min(sequences * length, d.vocabulary) * d.hidden
    reading = min(64 * MiB, 4 * d.vocabulary * d.hidden) + met + states
    return terms | {"embedding or last norm": max(0, max(5 * states, reading) - sum(terms.values()))}


def _block(d: Dimensions) -> int:
    return 4 * (d.hidden * d.head_dim * (2 * d.heads + 2 * d.kv_heads) + 3 * d.hidden * d.intermediate)


def gptq_memory(
    config: Mapping[str, Any], tokens: int, length: int, *, narrow: bool, lanes: int = 1, originals: bool = False
) -> dict[str, int]:
    """Peak RAM of GPTQ's lanes of the walk beyond the process, by term (their sum is the estimate), over so many tokens in
    sequences of `length`. narrow: what waits is bfloat16. originals: with what the layer's matrices meet in the model as it is,
    and another lane for that.

    Every sequence waits where a matrix is about to be solved, with all that its forward still needs: before o_proj queries,
    keys, values and the attention's output; before down_proj the residual and both its inputs. What it has freed on its way
    comes on top until the last of them has arrived, if it is small enough to be POOLED. Solving then takes half a float64
    matrix of the input's columns, and a matrix as it was, as it is aimed at, scaled, and as it becomes.
    """
    d = footprint.dimensions(config)
    query, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    held, width = (2 if narrow else 4), max(d.intermediate, d.hidden, query)

    def freed(count: int, width: int) -> int:
        return 4 * count * width if 4 * length * width < POOLED else 0

    attention = held * (d.hidden + query) + 4 * (query + 2 * keys)
    mlp = held * (d.hidden + d.intermediate) + 4 * d.hidden
    on_its_way = max(attention + freed(3, d.hidden) + freed(4, query), mlp + freed(3, d.intermediate))
    solving = tokens * max(attention, mlp) + 4 * width * width + 4 * 4 * d.hidden * d.intermediate
    return {
        "one block": _block(d),
        "original inputs": 4 * tokens * (2 * d.hidden + query + d.intermediate) if originals else 0,
        "hidden states": (lanes + originals) * (4 + held) * tokens * d.hidden,
        "waiting or solving": THREAD * (tokens // length) + max(tokens * on_its_way, solving),
    }


def onnx_conversion_memory(rows: Iterable[Row], layers: int, *, held: int = 0, inline: int = 0) -> int:
    """Peak RAM of writing an ONNX folder beyond the process: the graph, and its largest tensor in float32 and as codes.

    held: bytes of a graph's own weights; inline: of files that hold theirs, four times while they are written (codes, graph,
    protobuf, file).
    """
    largest = 5 * max((math.prod(row.shape) for row in rows), default=0)
    return GRAPH + layers * LAYER_OF_GRAPH + held + max(largest, 4 * inline)


def head_memory(config: Mapping[str, Any], sequences: int, length: int) -> dict[str, int]:
    """Peak RAM of turning the walk's hidden states into logits beyond the process, one sequence at a time, by term.

    A head up to 1 GiB is kept, a larger one read in slabs. Logits are held twice: the artefact's of the whole sequence, the
    original's of its scored half, and of what is compared at a time about as much.
    """
    d = footprint.dimensions(config)
    head = 4 * d.vocabulary * d.hidden
    return {
        "hidden states": 4 * sequences * length * d.hidden,
        "head": head if head <= GiB else 64 * MiB,
        "logits": 2 * 4 * length * d.vocabulary,
    }
