"""What a model takes in its engine at one context: a process of its own loads it, takes a prompt and decodes a few tokens.

GGUF runs in llama.cpp, a prompt in micro-batches, layers with a window in the short cache that its own programs give them
(its C interface, left alone, gives them the whole context). ONNX decoders run in onnxruntime-genai, which keeps one cache for
the whole context and takes a prompt as genai_config.json says. GPTQ runs in transformers, its matrices dequantised to bfloat16
when it is loaded, a few rows at a time: that needs no further package and is what a CPU without a kernel for packed codes is
left with. (gptqmodel 7.5.0 keeps them packed until its first forward, and took 0.8 to 2.0 GB where this takes 0.3 to 1.1.)

`python -m quantkit.resident --format F --file F --context N` measures one artefact: one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import footprint, memory, modules, skeleton, source
from quantkit.engines import children
from quantkit.values import Resident, Weights

DECODE = 4  # tokens after the prompt
_NEEDS = {"gguf": "llama_cpp", "onnx": "onnxruntime_genai", "gptq": "transformers"}


def available(format: str, path: Path) -> bool:
    """Whether the engine of a format is installed; onnxruntime-genai's runs folders that have its settings."""
    return find_spec(_NEEDS[format]) is not None and (format != "onnx" or (path.parent / "genai_config.json").is_file())


def measure(path: Path, *, format: str, threads: int, context: int) -> Resident:
    """Resident bytes before the model was loaded and at the peak, with `context` tokens. Errors as of children.run."""
    options: dict[str, str | int] = {"file": str(path), "format": format, "threads": threads, "context": context}
    return Resident(**children.run("quantkit.resident", path, options))


def _llama_cpp(path: Path, threads: int, context: int) -> tuple[str, tuple[int, float]]:
    from quantkit.engines import llama_cpp

    llama_cpp.load_library()
    before = _before()
    model = llama_cpp.load(
        path,
        context=context,
        micro_batch=min(context, footprint.UBATCH),
        threads=threads,
        exact=False,
        n_batch=footprint.UBATCH,
        swa_full=False,
    )
    prompt = _tokens(context - DECODE, model.vocabulary)
    for start in range(0, len(prompt), footprint.UBATCH):
        model.run(model.library.llama_decode, prompt[start : start + footprint.UBATCH], start, every=False)
    for index in range(DECODE):
        model.run(model.library.llama_decode, [model.greedy()], len(prompt) + index, every=False)
    return llama_cpp.name(), before


def _genai(path: Path, threads: int, context: int) -> tuple[str, tuple[int, float]]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime_genai

    before = _before()
    config = onnxruntime_genai.Config(str(path.parent))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = onnxruntime_genai.Model(config)
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=context, do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    vocabulary = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    generator.append_tokens(np.array([_tokens(context - DECODE, vocabulary)], np.int32))
    for _ in range(DECODE):
        if not generator.is_done():
            generator.generate_next_token()
    return f"onnxruntime-genai {version('onnxruntime-genai')}", before


def _transformers(path: Path, threads: int, context: int) -> tuple[str, tuple[int, float]]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    memory.return_large_blocks(256 << 10)  # of a C library that keeps freed blocks, peaks would be of its making
    snapshot = source.describe(str(path.parent))
    model = skeleton.build(snapshot.config, "AutoModelForCausalLM").to(torch.bfloat16)  # on the meta device still
    before = _before()
    _load(model, modules.view(snapshot.config, snapshot.weights))
    tokens = torch.tensor([_tokens(context - DECODE, model.config.vocab_size)])
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


_RUN: dict[str, Callable[[Path, int, int], tuple[str, tuple[int, float]]]] = {
    "gguf": _llama_cpp,
    "onnx": _genai,
    "gptq": _transformers,
}


def _before() -> tuple[int, float]:
    """Resident bytes and the time, before a model is loaded."""
    return memory.resident(), time.perf_counter()


def _tokens(count: int, vocabulary: int) -> list[int]:
    return [(7919 * index + 17) % vocabulary for index in range(count)]


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.resident")
    parser.add_argument("--format", choices=tuple(_RUN), required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    given = parser.parse_args()
    memory.reset_peak()
    engine, (before, began) = _RUN[given.format](given.file, given.threads, given.context)
    found = Resident(engine, given.context, before, memory.peak(), time.perf_counter() - began)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main()
