"""Divergence of our GGUF files from the original, beside llama.cpp's own of the same type, size and source, in one run.

Both start from the same weights: ours from the source, llama.cpp's (`llama_model_quantize`) from our F16 file of it, with the
same importance matrix, which our walk over the calibration text measures. Both are measured in llama.cpp by
llama-perplexity's protocol against the original, which is walked in float32. kld_ratio is ours / theirs, diff_se the standard
error of the difference (paired by chunk); time_ratio is theirs / ours, and theirs does not count the F16 file that it starts
from.

Rows of codes gptq are whole runs (walk and all) in a process of their own, calibrated on the same 32,768 tokens.

    python benchmarks/bench_gguf.py [--quick] [--text FILE] [--calibration FILE] [--models smollm2 smollm2-rot768]
                                    [--types Q4_K_M ...] [--codes search gptq] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as library
import numpy as np
from models import SMOLLM2, open_model
from numpy.typing import NDArray

from quantkit import heads, memory, pipeline, recipe_file, walk, workspace
from quantkit.calibration import corpus, importance
from quantkit.calibration.corpus import Sequences
from quantkit.checks import scoring
from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import estimate
from quantkit.engines import llama_cpp
from quantkit.formats.gguf import layout, writer
from quantkit.formats.gguf.mixture import FILE_TYPE
from quantkit.job import Options
from quantkit.progress import silent
from quantkit.source import text as texts
from quantkit.targets import GgufTarget
from quantkit.values import F32, Artefact, Importance, Snapshot

SILENT = library.llama_log_callback(lambda *_: None)  # held: llama.cpp keeps only a pointer
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = ("smollm2", "smollm2-rot768")
TYPES = ("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
THREADS = 2
CHUNKS = 16
CALIBRATION = 64  # sequences of 512 tokens


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, what it says of the evaluation text, and the importance of its columns under GGUF names."""

    snapshot: Snapshot
    tokens: NDArray[np.int32]
    hidden: F32
    head: Callable[[F32], F32]
    importance: Mapping[str, Importance]


def subject(model: str, text: texts.Text, calibration: texts.Text, work: Path) -> Subject:
    """The walks are kept in `work`, by what they depend on."""
    snapshot = open_model(model, work)
    assert snapshot.tokenizer is not None
    tokens = corpus.cut(text.path, snapshot.tokenizer, chunks=CHUNKS, length=512)
    given = corpus.cut(calibration.path, snapshot.tokenizer, chunks=CALIBRATION, length=512)

    def kept(name: str, tokens: NDArray[np.int32], make: Callable[[], Any]) -> Any:
        made_from = workspace.key(model=model, digests=snapshot.digests, tokens=tokens.tobytes().hex())
        path = work / f"{model}-{name}-{made_from[:12]}.pickle"
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())

    config, weights = snapshot.config, snapshot.weights
    hidden = kept("hidden", tokens, lambda: walk.walk(config, weights, tokens, threads=THREADS))
    squares = kept(
        "importance", given, lambda: importance.measure(config, weights, Sequences(given), threads=THREADS, progress=silent)
    )
    head = heads.project(config, weights, threads=THREADS)
    return Subject(snapshot, tokens, hidden, head, layout.importance(snapshot, squares))


def write(snapshot: Snapshot, kind: Any, folder: Path, weighed: Mapping[str, Importance]) -> Artefact:
    target = GgufTarget(format="gguf", type=kind, imatrix=bool(weighed))
    plan = layout.plan(target, "0" * 64, snapshot, "bench")
    return writer.write(plan, snapshot, folder, importance=weighed, threads=THREADS, progress=silent)


def quantize(base: Path, out: Path, kind: str, weighed: Mapping[str, Importance]) -> float:
    """llama.cpp's own file; seconds."""
    params = library.llama_model_quantize_default_params()
    params.nthread, params.ftype = THREADS, FILE_TYPE[kind]
    held = [(name.encode(), np.ascontiguousarray(values.squares.reshape(-1))) for name, values in weighed.items()]
    entries = (library.llama_model_imatrix_data * (len(held) + 1))()
    for entry, (name, values) in zip(entries, held, strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if held:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(library.llama_model_imatrix_data))
    library.llama_log_set(SILENT, ctypes.c_void_p(0))
    started = time.perf_counter()
    if library.llama_model_quantize(str(base).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama_model_quantize failed on {kind}")
    return time.perf_counter() - started


def score(path: Path, given: Subject) -> Scores:
    runner = llama_cpp.open_runner(path, context=512, threads=THREADS)
    try:
        return scoring.score(
            lambda index: runner.logits(given.tokens[index].tolist()),
            given.tokens,
            given.hidden,
            given.head,
            first=256,
            engine=runner.engine,
        )
    finally:
        runner.close()


@dataclass(frozen=True, slots=True)
class Made:
    """A file of ours and what it took."""

    path: Path
    nbytes: int
    seconds: float
    peak_rss_bytes: int


def solve(uri: str, kind: str, calibration: Path, tokens: int, work: Path) -> Made:
    """A file with codes of GPTQ's engine, made as `quantkit run` makes it without checks."""
    target = {"format": "gguf", "type": kind, "codes": "gptq", "imatrix": True}
    given = {"text": str(calibration), "tokens": tokens, "length": 512}
    document = json.dumps({"source": uri, "targets": [target], "calibration": given, "checks": False})
    command = [sys.executable, __file__, "--make", document, "--work", str(work)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(child.stdout.splitlines()[-1])
    return Made(Path(found["path"]), found["bytes"], found["seconds"], found["peak_rss_bytes"])


def make(document: str, work: Path) -> dict[str, Any]:
    """In a process of its own: the file of a recipe, its clock started after imports."""
    recipe = recipe_file.parse(document, "bench", "the benchmark")
    memory.reset_peak()
    began = time.perf_counter()
    manifest = pipeline.convert(recipe, Options(work_dir=work, threads=THREADS, force=True), silent)
    seconds, path = time.perf_counter() - began, work / "bench" / manifest.targets[0].file
    return {"path": str(path), "bytes": path.stat().st_size, "seconds": seconds, "peak_rss_bytes": memory.peak()}


def measure(
    model: str, given: Subject, kind: str, weighed: Mapping[str, Importance], base: Path, work: Path, solved: Made | None = None
) -> dict[str, Any]:
    """One row; of the file `solved`, or of one whose codes are searched."""
    ours, theirs = solved or write(given.snapshot, kind, work, weighed), work / "theirs.gguf"
    seconds = quantize(base, theirs, kind, weighed)
    one, other = score(ours.path, given), score(theirs, given)
    kld, their_kld, difference = estimate(one.kld), estimate(other.kld), estimate(one.kld - other.kld)
    row = {
        "model": model,
        "type": kind,
        "imatrix": bool(weighed),
        "codes": "gptq" if solved else "search",
        "bytes": ours.nbytes,
        "llamacpp_bytes": theirs.stat().st_size,
        "kld": round(kld.mean, 5),
        "kld_se": round(kld.error, 5),
        "llamacpp_kld": round(their_kld.mean, 5),
        "llamacpp_kld_se": round(their_kld.error, 5),
        "kld_ratio": round(kld.mean / their_kld.mean, 3),
        "diff_se": round(difference.error, 5),
        "ppl_ratio": round(math.exp(estimate(one.nll_artefact - one.nll_reference).mean), 4),
        "llamacpp_ppl_ratio": round(math.exp(estimate(other.nll_artefact - other.nll_reference).mean), 4),
        "same_top": round(estimate(one.same_top).mean, 4),
        "seconds": round(ours.seconds, 2),
        "llamacpp_seconds": round(seconds, 2),
        "time_ratio": round(seconds / ours.seconds, 2),
        "peak_rss_mb": round(ours.peak_rss_bytes / 1e6, 1),
    }
    ours.path.unlink()
    print(row, file=sys.stderr)
    return row


def default(name: str) -> str:
    return str(DATA / name) if (DATA / name).exists() else texts.BUILTIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no rows without importance")
    parser.add_argument("--text", default=default("wiki.test.raw"))
    parser.add_argument("--calibration", default=default("wikitext2-valid.txt"))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--codes", nargs="+", default=["search", "gptq"], choices=["search", "gptq"])
    parser.add_argument("--tokens", type=int, default=CALIBRATION * 512, help="of calibration for codes gptq")
    parser.add_argument("--work", type=Path, help="keep the models and the walks here")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        print(json.dumps(make(given.make, given.work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        text, calibration = texts.fetch(given.text, work), texts.fetch(given.calibration, work)
        for name, found in (("text", text), ("calibration", calibration)):
            print(f"{name} {found.name}, sha256 {found.sha256}", file=sys.stderr)
        rows = []
        for model in given.models:
            of = subject(model, text, calibration, work)
            base = write(of.snapshot, "F16", work, {}).path
            for kind in given.types:
                for weighed in (of.importance,) if given.quick else (of.importance, {}):
                    if "search" in given.codes:
                        rows.append(measure(model, of, kind, weighed, base, work))
                if "gptq" in given.codes:
                    uri = SMOLLM2 if model == "smollm2" else str(work / model)
                    made = solve(uri, kind, calibration.path, given.tokens, work)
                    rows.append(measure(model, of, kind, of.importance, base, work, made))
            base.unlink()
    named = {"text": text.name, "text_sha256": text.sha256, "calibration": calibration.name}
    print(json.dumps({"bench": "gguf", **named, "calibration_sha256": calibration.sha256, "rows": rows}))


if __name__ == "__main__":
    main()
