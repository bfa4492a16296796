"""Speed and memory of a graph in onnxruntime, from a process of its own.

`python -m quantkit.engines.onnxruntime_speed --file F` measures one file: one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from quantkit import memory
from quantkit.engines import children, onnxruntime_decoder
from quantkit.values import Speed

_WARM_UP_TOKENS = 16


def measure(path: Path, *, threads: int, prompt: int, decode: int) -> Speed:
    """Speed and peak memory of one decoder, from one child process; see `_measure` for what is timed. Errors as of
    children.measure."""
    options: dict[str, str | int] = {"file": str(path), "threads": threads, "prompt": prompt, "decode": decode}
    return children.measure("quantkit.engines.onnxruntime_speed", path, options)


def _measure(path: Path, threads: int, prompt: int, decode: int) -> Speed:
    """Load, warm up, prefill `prompt` tokens in one forward, then `decode` tokens one at a time, each the likeliest.

    Times and memory as of llama_cpp_speed.measure. Tokens are arbitrary: speed does not depend on them.
    """
    import onnxruntime  # noqa: F401  # not part of loading a model

    begin = time.perf_counter()
    decoder = onnxruntime_decoder.load(path, threads=threads)
    loaded = time.perf_counter()
    ids = np.array([[(7919 * index + 17) % 1000 for index in range(prompt)]], np.int64)
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
    return Speed(
        engine=onnxruntime_decoder.name(),
        threads=threads,
        prompt_tokens=prompt,
        decode_tokens=decode,
        load_seconds=loaded - begin,
        first_token_seconds=first - warm,
        prefill_tokens_per_s=prompt / (first - warm),
        decode_tokens_per_s=decode / (end - first),
        peak_rss_bytes=memory.peak(),
    )


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.engines.onnxruntime_speed")
    parser.add_argument("--file", type=Path, required=True)
    for name, default in (("threads", 2), ("prompt", 256), ("decode", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(json.dumps(asdict(_measure(given.file, given.threads, given.prompt, given.decode))))


if __name__ == "__main__":
    _main()
