"""llama.cpp's own quantiser of GGUF files, in a process of its own: a fault in it ends no run, and its memory is seen apart.

`python -m quantkit.engines.llama_cpp_quantizer --file F --out O --file-type N` makes one file: one JSON line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quantkit import memory
from quantkit.codecs import imatrix
from quantkit.engines import children, llama_cpp
from quantkit.errors import UnresolvedError
from quantkit.values import Importance


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of it, in llama.cpp's numbers: llama_ftype, and ggml_type of the head and of the embedding, None for the
    file type's own choice. pure: no mixture."""

    file_type: int
    output: int | None = None
    token_embd: int | None = None
    pure: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took. peak_rss_bytes: mapped pages of the file that it reads included."""

    seconds: float
    peak_rss_bytes: int


def make(base: Path, out: Path, wish: Wish, *, importance: Path | None, threads: int) -> Cost:
    """Quantises the unquantised file `base` into `out`, weighed by an imatrix file. Errors as of children.run."""
    asked = {"file-type": wish.file_type, "output": wish.output, "token-embd": wish.token_embd, "threads": threads}
    options: dict[str, str | int] = {"file": str(base), "out": str(out), "pure": int(wish.pure)}
    options |= {key: value for key, value in asked.items() if value is not None}
    if importance is not None:
        options["importance"] = str(importance)
    return Cost(**children.run("quantkit.engines.llama_cpp_quantizer", base, options))


def quantise(base: Path, out: Path, wish: Wish, weighed: Mapping[str, Importance], threads: int) -> float:
    """The same in this process, weighed by importance under GGUF names; seconds. Raises UnresolvedError with its reason."""
    library = llama_cpp.load_library()
    settings = library.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.pure = threads, wish.file_type, wish.pure
    if wish.output is not None:
        settings.output_tensor_type = wish.output
    if wish.token_embd is not None:
        settings.token_embedding_type = wish.token_embd
    held = [(name.encode(), np.ascontiguousarray(value.squares.reshape(-1))) for name, value in weighed.items()]
    entries = (library.llama_model_imatrix_data * (len(held) + 1))()  # ends at one without a name
    for entry, (name, values) in zip(entries, held, strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if held:
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(library.llama_model_imatrix_data))
    began = time.perf_counter()
    if library.llama_model_quantize(str(base).encode(), str(out).encode(), ctypes.byref(settings)) != 0:
        raise UnresolvedError(f"llama.cpp does not quantise {base}: {llama_cpp.reason()}")
    return time.perf_counter() - began


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.engines.llama_cpp_quantizer")
    for name in ("file", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--importance", type=Path)
    for name, default in (("file-type", 0), ("output", None), ("token-embd", None), ("pure", 0), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    wish = Wish(given.file_type, given.output, given.token_embd, bool(given.pure))
    weighed = imatrix.read(given.importance) if given.importance else {}
    seconds = quantise(given.file, given.out, wish, weighed, given.threads)
    print(json.dumps(asdict(Cost(seconds, memory.peak()))))


if __name__ == "__main__":
    _main()
