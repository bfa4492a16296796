"""What a model takes in its engine at one context: a process of its own loads it, takes a prompt and decodes a few tokens.
Of an encoder the context is a text, read a few times; of an encoder-decoder a text that is answered with a few tokens.

GGUF runs in llama.cpp, a prompt in micro-batches, layers with a window in the short cache that its own programs give them
(its C interface, left alone, gives them the whole context). ONNX folders with genai_config.json run in onnxruntime-genai,
which keeps one cache for the whole context and takes a prompt as that file says; others in onnxruntime, which takes it whole.
GPTQ runs in transformers, its matrices dequantised to bfloat16 when it is loaded, a few rows at a time: that needs no further
package and is what a CPU without a kernel for packed codes is left with. (gptqmodel 7.5.0 keeps them packed until its first
forward, and took 0.8 to 2.0 GB where this takes 0.3 to 1.1.)

`python -m quantkit.resident --format F --file F --context N` measures one artefact: one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np

from quantkit import arch, footprint, memory, modules, skeleton, source
from quantkit.engines import children, onnxruntime_decoder
from quantkit.values import Resident, Weights

DECODE = 4  # tokens after the prompt
READINGS = 3  # of an encoder's text: what an arena hands out for a text of one length it settles with the second
_NEEDS = {"gguf": "llama_cpp", "onnx": "onnxruntime", "gptq": "transformers"}

Found = tuple[str, tuple[int, float]]
"""The engine, and what `_before` said."""


def available(format: str) -> bool:
    """Whether the engine of a format is installed."""
    return find_spec(_NEEDS[format]) is not None


def measure(path: Path, *, format: str, kind: arch.Kind, threads: int, context: int) -> Resident:
    """Resident bytes before the model was loaded and at the peak, with `context` tokens. Errors as of children.run."""
    options: dict[str, str | int] = {
        "file": str(path),
        "format": format,
        "kind": kind,
        "threads": threads,
        "context": context,
    }
    return Resident(**children.run("quantkit.resident", path, options))


def _llama_cpp(path: Path, kind: arch.Kind, threads: int, context: int) -> Found:
    from quantkit.engines import llama_cpp

    llama_cpp.load_library()
    before = _before()
    decoder = kind == "decoder"
    model = llama_cpp.load(
        path,
        context=context,
        micro_batch=min(context, footprint.UBATCH) if decoder else context,  # an encoder sees its whole text at once
        threads=threads,
        exact=False,
        **({"n_batch": footprint.UBATCH, "swa_full": False} if decoder else {"embeddings": kind == "encoder"}),
    )
    library, prompt = model.library, children.tokens(context - DECODE * decoder, model.vocabulary)
    if decoder:
        for start in range(0, len(prompt), footprint.UBATCH):
            model.run(library.llama_decode, prompt[start : start + footprint.UBATCH], start, every=False)
    else:
        for _ in range(READINGS):
            model.run(library.llama_encode, prompt, every=kind == "encoder")
    if kind != "encoder":
        for index in range(DECODE):
            token = model.greedy() if decoder or index else prompt[0]
            model.run(library.llama_decode, [token], len(prompt) * decoder + index, every=False)
    return llama_cpp.name(), before


def _genai(path: Path, threads: int, context: int) -> Found:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime_genai

    before = _before()
    config = onnxruntime_genai.Config(str(path.parent))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = onnxruntime_genai.Model(config)
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=context, do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    prompt = children.tokens(context - DECODE, onnxruntime_decoder.vocabulary(path))
    generator.append_tokens(np.array([prompt], np.int32))
    for _ in range(DECODE):
        if not generator.is_done():
            generator.generate_next_token()
    return f"onnxruntime-genai {version('onnxruntime-genai')}", before


def _onnxruntime(path: Path, kind: arch.Kind, threads: int, context: int) -> Found:
    import onnxruntime  # noqa: F401  # before the model is loaded

    from quantkit.engines import onnxruntime_encoder, onnxruntime_transducer

    memory.return_large_blocks(256 << 10)  # as for transformers, below
    before = _before()
    ids = np.array([children.tokens(context - DECODE * (kind == "decoder"), onnxruntime_decoder.vocabulary(path))], np.int64)
    mask, token = np.ones_like(ids), ids[:, :1]
    if kind == "encoder":
        session = onnxruntime_decoder.session(path, threads=threads)
        for _ in range(READINGS):
            onnxruntime_encoder.states(session, ids, mask)
    elif kind == "encoder-decoder":
        graphs = onnxruntime_transducer.load(path, threads=threads)
        for _ in range(READINGS):
            states = graphs.encode(ids, mask)
        logits, past = graphs.begin(token, states, mask)
        for _ in range(DECODE):
            logits, past = graphs.go_on(logits[:, -1:].argmax(-1), mask, past)
    else:
        decoder = onnxruntime_decoder.load(path, threads=threads)
        logits, cache = decoder.run(ids, mask, decoder.empty(1))
        for index in range(DECODE):
            logits, cache = decoder.run(logits[:, -1:].argmax(-1), np.ones((1, ids.size + index + 1), np.int64), cache)
    return onnxruntime_decoder.name(), before


def _transformers(path: Path, threads: int, context: int) -> Found:
    import torch
    import transformers

    torch.set_num_threads(threads)
    memory.return_large_blocks(256 << 10)  # of a C library that keeps freed blocks, peaks would be of its making
    snapshot = source.describe(str(path.parent))
    model = skeleton.build(snapshot.config, "AutoModelForCausalLM").to(torch.bfloat16)  # on the meta device still
    before = _before()
    _load(model, modules.view(snapshot.config, snapshot.weights))
    tokens = torch.tensor([children.tokens(context - DECODE, model.config.vocab_size)])
    with torch.no_grad():
        output = model(tokens, use_cache=True, logits_to_keep=1)
        for _ in range(DECODE):
            output = model(output.logits[:, -1:].argmax(-1), past_key_values=output.past_key_values, use_cache=True)
    return f"transformers {transformers.__version__}, dequantised", before


def _load(model: Any, weights: Weights) -> None:
    """A checkpoint's tensors in bfloat16, each converted a few rows at a time."""
    import torch

    ties: Mapping[str, str] = model.all_tied_weights_keys
    for prefix, module in model.named_modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            whole, shape = f"{prefix}.{name}", tuple(empty.shape)
            if whole in ties:
                continue
            stored, values = skeleton.tied(model, whole, weights), torch.empty(shape, dtype=torch.bfloat16)
            pieces = (
                skeleton.slabs(weights, stored, shape)() if len(shape) == 2 else [(0, skeleton.read(weights, stored, shape))]
            )
            for start, rows in pieces:
                values[start : start + len(rows)] = torch.from_numpy(rows)
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
            memory.release()
    model.tie_weights()
    memory.release()


def _run(format: str, path: Path, kind: arch.Kind, threads: int, context: int) -> Found:
    if format == "gguf":
        return _llama_cpp(path, kind, threads, context)
    if format == "gptq":
        return _transformers(path, threads, context)
    if (path.parent / "genai_config.json").is_file():
        return _genai(path, threads, context)
    return _onnxruntime(path, kind, threads, context)


def _before() -> tuple[int, float]:
    """Resident bytes and the time, before a model is loaded."""
    return memory.resident(), time.perf_counter()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.resident")
    parser.add_argument("--format", choices=tuple(_NEEDS), required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--kind", choices=get_args(arch.Kind), default="decoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    given = parser.parse_args()
    memory.reset_peak()
    engine, (before, began) = _run(given.format, given.file, given.kind, given.threads, given.context)
    found = Resident(engine, given.context, before, memory.peak(), time.perf_counter() - began)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main()
