"""Speed and memory of a graph in onnxruntime, from a process of its own.

`python -m quantkit.engines.onnxruntime_speed --file F` measures one file: one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.engines import children, onnxruntime_decoder, onnxruntime_encoder, onnxruntime_transducer
from quantkit.values import Speed

Kind = Literal["decoder", "encoder", "encoder-decoder"]

_WARM_UP_TOKENS = 16


def measure(path: Path, *, kind: Kind, threads: int, prompt: int, decode: int) -> Speed:
    """Speed and peak memory of one graph, from one child process; see `_measure` for what is timed. Errors as of
    children.measure."""
    options: dict[str, str | int] = {
        "file": str(path),
        "kind": kind,
        "threads": threads,
        "prompt": prompt,
        "decode": decode,
    }
    return children.measure("quantkit.engines.onnxruntime_speed", path, options)


def _measure(path: Path, threads: int, prompt: int, decode: int) -> Speed:
    """Load, warm up, prefill `prompt` tokens in one forward, then `decode` tokens one at a time, each the likeliest.

    Times and memory as of llama_cpp_speed.measure. Tokens are arbitrary: speed does not depend on them.
    """
    import onnxruntime  # noqa: F401  # not part of loading a model

    begin = time.perf_counter()
    decoder = onnxruntime_decoder.load(path, threads=threads)
    loaded = time.perf_counter()
    ids = _tokens(path, prompt)
    _, past = decoder.run(ids[:, :_WARM_UP_TOKENS], np.ones((1, _WARM_UP_TOKENS), np.int64), decoder.empty(1))
    decoder.run(ids[:, :1], np.ones((1, _WARM_UP_TOKENS + 1), np.int64), past)
    warm = time.perf_counter()
    logits, past = decoder.run(ids, np.ones_like(ids), decoder.empty(1))
    token = logits[:, -1:].argmax(-1)
    first = time.perf_counter()
    for index in range(decode):
        logits, past = decoder.run(token, np.ones((1, prompt + index + 1), np.int64), past)
        token = logits[:, -1:].argmax(-1)
    end = time.perf_counter()
    return children.speed(onnxruntime_decoder.name(), threads, prompt, decode, (begin, loaded, warm, first, first, end))


def _measure_encoder(path: Path, threads: int, prompt: int) -> Speed:
    """Load, warm up, then texts of `prompt` tokens, one at a time, for half a second or three of them."""
    import onnxruntime  # noqa: F401

    begin = time.perf_counter()
    session = onnxruntime_decoder.session(path, threads=threads)
    loaded = time.perf_counter()
    ids = _tokens(path, prompt)
    onnxruntime_encoder.states(session, ids, np.ones_like(ids))
    warm, times = time.perf_counter(), list[float]()
    while len(times) < 3 or time.perf_counter() - warm < 0.5:
        start = time.perf_counter()
        onnxruntime_encoder.states(session, ids, np.ones_like(ids))
        times.append(time.perf_counter() - start)
    each = sorted(times)[len(times) // 2]
    done = warm + each
    return children.speed(onnxruntime_decoder.name(), threads, prompt, 0, (begin, loaded, warm, done, done, done))


def _measure_transducer(path: Path, threads: int, prompt: int, decode: int) -> Speed:
    """Load, warm up, encode a text of `prompt` tokens, then answer with `decode` tokens, each the likeliest."""
    import onnxruntime  # noqa: F401

    begin = time.perf_counter()
    graphs = onnxruntime_transducer.load(path, threads=threads)
    loaded = time.perf_counter()
    ids = _tokens(path, prompt)
    mask, start = np.ones_like(ids), ids[:, :1]
    _, past = graphs.begin(start, graphs.encode(ids, mask), mask)
    graphs.go_on(start, mask, past)
    warm = time.perf_counter()
    states = graphs.encode(ids, mask)
    filled = time.perf_counter()
    logits, past = graphs.begin(start, states, mask)
    first = time.perf_counter()
    for _ in range(decode):
        logits, past = graphs.go_on(logits[:, -1:].argmax(-1), mask, past)
    end = time.perf_counter()
    return children.speed(onnxruntime_decoder.name(), threads, prompt, decode, (begin, loaded, warm, filled, first, end))


def _tokens(path: Path, count: int) -> NDArray[np.int64]:
    return np.array([children.tokens(count, onnxruntime_decoder.vocabulary(path))], np.int64)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.engines.onnxruntime_speed")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--kind", choices=("decoder", "encoder", "encoder-decoder"), default="decoder")
    for name, default in (("threads", 2), ("prompt", 256), ("decode", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.kind == "encoder-decoder":
        found = _measure_transducer(given.file, given.threads, given.prompt, given.decode)
    elif given.kind == "encoder":
        found = _measure_encoder(given.file, given.threads, given.prompt)
    else:
        found = _measure(given.file, given.threads, given.prompt, given.decode)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main()
