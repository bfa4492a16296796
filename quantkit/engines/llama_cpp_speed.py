"""Speed and memory of a file in llama.cpp, from a process of its own.

`python -m quantkit.engines.llama_cpp_speed --file F` measures one file: one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from quantkit import footprint
from quantkit.engines import children, llama_cpp
from quantkit.engines.llama_cpp import Loaded
from quantkit.values import Speed

Kind = Literal["decoder", "encoder", "encoder-decoder"]

_WARM_UP_TOKENS = 16


def measure(path: Path, *, kind: Kind, threads: int, prompt: int, decode: int, context: int) -> Speed:
    """Speed and peak memory of one file, from one child process; see `_measure` for what is timed. Errors as of
    children.measure."""
    options: dict[str, str | int] = {
        "file": str(path),
        "kind": kind,
        "threads": threads,
        "prompt": prompt,
        "decode": decode,
        "context": context,
    }
    return children.measure("quantkit.engines.llama_cpp_speed", path, options)


def _measure(path: Path, kind: Kind, threads: int, prompt: int, decode: int, context: int) -> Speed:
    """Load, warm up, prefill `prompt` tokens in one forward (of an encoder, if there is one), then `decode` tokens one at a
    time (unless there is no decoder).

    load_seconds: until the engine can take a prompt; of a mapped file, pages may still come in during the warm-up.
    first_token_seconds: prompt in, first token out (of an encoder: its embedding), model loaded and warm.
    peak_rss_bytes: the whole process, mapped pages of the file and the Python binding included. Tokens are arbitrary: speed
    does not depend on them.
    """
    llama_cpp.load_library()
    begin = time.perf_counter()
    micro_batch = min(context, footprint.UBATCH) if kind == "decoder" else context
    further = {"embeddings": True} if kind == "encoder" else {}
    model = llama_cpp.load(path, context=context, micro_batch=micro_batch, threads=threads, exact=False, **further)
    loaded = time.perf_counter()
    tokens = children.tokens(prompt + decode, model.vocabulary)
    begun = prompt if kind == "decoder" else 1  # where the decoder stands after its first token
    _read(model, kind, tokens[:_WARM_UP_TOKENS])
    _answer(model, kind, tokens[:4], _WARM_UP_TOKENS if kind == "decoder" else 0)
    model.forget()
    warm = time.perf_counter()
    _read(model, kind, tokens[:prompt])
    filled = time.perf_counter()
    _answer(model, kind, tokens[:1] if kind == "encoder-decoder" else [], 0)
    if kind == "decoder":
        model.greedy()
    first = time.perf_counter()
    _answer(model, kind, tokens[prompt:], begun)
    end = time.perf_counter()
    model.close()
    decoded = 0 if kind == "encoder" else decode
    return children.speed(llama_cpp.name(), threads, prompt, decoded, (begin, loaded, warm, filled, first, end))


def _read(model: Loaded, kind: Kind, prompt: Sequence[int]) -> None:
    forward = model.library.llama_decode if kind == "decoder" else model.library.llama_encode
    model.run(forward, prompt, every=kind == "encoder")


def _answer(model: Loaded, kind: Kind, tokens: Sequence[int], position: int) -> None:
    """Decodes `tokens` one by one and takes the likeliest token after each."""
    for index, token in enumerate(tokens if kind != "encoder" else ()):
        model.run(model.library.llama_decode, [token], position + index, every=False)
        model.greedy()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.engines.llama_cpp_speed")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--kind", choices=("decoder", "encoder", "encoder-decoder"), default="decoder")
    for name, default in (("threads", 2), ("prompt", 512), ("decode", 64), ("context", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(json.dumps(asdict(_measure(given.file, given.kind, given.threads, given.prompt, given.decode, given.context))))


if __name__ == "__main__":
    _main()
