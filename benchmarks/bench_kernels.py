"""Weights per second of every GGUF encoder against ggml's own quantiser, in one run on this machine.

Theirs is ggml_quantize_chunk in the libggml-base that llama-cpp-python carries, ours the codecs that
tests/codecs/gguf/test_ggml_error.py holds to ggml's error; every thread takes an equal part of the rows of both. The
two alternate; the ratio is the median over repeats of theirs / ours, clocks start on compiled kernels. The last line
of stdout is one JSON object, the table goes to stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from quantkit.codecs.gguf import codecs
from quantkit.values import F32, U8, Codec

Quantize = Callable[[Codec, F32, F32 | None, U8], None]

WIDTH = 4096
LEAST = 256  # rows: 1 million weights
SAMPLE = 0.05  # seconds that ggml may take; as many rows as that allows, so that starting threads does not count


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the GGUF encoders against ggml's.")
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 15")
    parser.add_argument("--types", nargs="*", help="only these types, e.g. Q4_K Q6_K")
    options = parser.parse_args()
    quantize = ggml_quantizer()
    rows = weights((1 << 22) // WIDTH)
    dice = np.random.default_rng(1)
    importance = dice.chisquare(1, WIDTH).astype(np.float32) + np.float32(0.01)
    mean = (np.sqrt(importance) * dice.uniform(-0.9, 0.9, WIDTH)).astype(np.float32)
    names = options.types or [name for name in codecs() if name != "F32"]  # F32 is a copy
    results = [
        measure(codecs()[name], rows, squares, means, threads, quantize, 3 if options.quick else 15)
        for name in names
        for threads in (1, 2)
        for squares, means in ((None, None), (importance, None), (importance, mean))
    ]
    Console(stderr=True).print(drawn(results))
    print(json.dumps({"bench": "kernels", "rows": results}))


def weights(count: int) -> F32:
    """Gaussian rows of standard deviation 0.02 with bfloat16's eight bits, as checkpoints hold them."""
    rows = (0.02 * np.random.default_rng(0).standard_normal((count, WIDTH))).astype(np.float32)
    return codecs()["BF16"].decode(codecs()["BF16"].encode(rows, None))


def ggml_quantizer() -> Quantize:
    """ggml's quantiser as quantize(codec, rows, importance, out)."""
    spec = importlib.util.find_spec("llama_cpp")
    path = Path(spec.origin).parent / "lib" / "libggml-base.so" if spec and spec.origin else None
    if path is None or not path.exists():
        sys.exit("the benchmark compares with ggml: install llama-cpp-python (pip install quantkit-pipeline[llama])")
    chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(codec: Codec, rows: F32, importance: F32 | None, out: U8) -> None:
        pointer = None if importance is None else importance.ctypes.data
        chunk(codec.ggml_type, rows.ctypes.data, out.ctypes.data, 0, len(rows), WIDTH, pointer)

    return quantize


def measure(
    codec: Codec, rows: F32, importance: F32 | None, mean: F32 | None, threads: int, quantize: Quantize, repeats: int
) -> dict[str, Any]:
    """One row of the report: medians of `repeats` alternating runs over 1 to 4 million weights, compiled before. ggml's knows
    no means."""

    def encode(codec: Codec, rows: F32, importance: F32 | None, out: U8) -> None:
        """Ours; the codec allocates what it returns, so `out` stays as it is."""
        assert codec.encode(rows, importance, mean).shape == out.shape

    out = np.empty((len(rows), codec.row_bytes(WIDTH)), np.uint8)
    encode(codec, rows[:2], importance, out[:2])
    with ThreadPoolExecutor(threads) as pool:

        def run(one: Quantize, count: int) -> float:
            """Seconds for `count` rows, an equal part of them to every thread."""
            cuts = [count * part // threads for part in range(threads + 1)]
            parts = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
            start = time.perf_counter()
            list(pool.map(lambda part: one(codec, rows[part], importance, out[part]), parts))
            return time.perf_counter() - start

        count = min(len(rows), max(LEAST, round(LEAST * SAMPLE / run(quantize, LEAST))))
        samples = [(run(quantize, count), run(encode, count)) for _ in range(repeats)]
    theirs, ours = zip(*samples, strict=True)
    return {
        "type": codec.name,
        "threads": threads,
        "importance": importance is not None,
        "means": mean is not None,
        "mweights_per_s": round(count * WIDTH / statistics.median(ours) / 1e6, 1),
        "ggml_mweights_per_s": round(count * WIDTH / statistics.median(theirs) / 1e6, 1),
        "ratio": round(statistics.median(theirs_s / ours_s for theirs_s, ours_s in zip(theirs, ours, strict=True)), 2),
    }


def drawn(results: list[dict[str, Any]]) -> Table:
    table = Table("type", "threads", "importance", "Mw/s", "ggml Mw/s", "ratio", title="GGUF encoders against ggml")
    for row in results:
        importance = "and means" if row["means"] else "yes" if row["importance"] else "no"
        rates = f"{row['mweights_per_s']:.0f}", f"{row['ggml_mweights_per_s']:.0f}"
        table.add_row(row["type"], str(row["threads"]), importance, *rates, f"{row['ratio']:.2f}")
    return table


if __name__ == "__main__":
    main()
