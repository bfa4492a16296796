"""Divergence of our GGUF files from the original, beside llama.cpp's own of the same type, size and source, in one run.

Both start from the same weights: ours from the source, llama.cpp's (`llama_model_quantize`) from our F16 file of it. Both
are measured in llama.cpp by llama-perplexity's protocol against the original, which is walked in float32. kld_ratio is
ours / theirs; time_ratio is theirs / ours, and theirs does not count the F16 file that it starts from.

    python benchmarks/bench_gguf.py [--quick] [--text FILE] [--models smollm2 smollm2-rot768] [--types Q4_K_M ...]
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from models import open_model

from quantkit import walk
from quantkit.calibration import corpus
from quantkit.checks import scoring
from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import estimate
from quantkit.engines import llama_cpp
from quantkit.formats.gguf import layout, writer
from quantkit.formats.gguf.mixture import FILE_TYPE
from quantkit.progress import silent
from quantkit.recipe import GgufTarget
from quantkit.source import text as texts
from quantkit.values import Artefact, Snapshot

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "wiki.test.raw"
MODELS = ("smollm2", "smollm2-rot768")
TYPES = ("Q4_K_M", "Q4_0", "Q8_0")
THREADS = 2


def write(snapshot: Snapshot, kind: Any, folder: Path) -> Artefact:
    plan = layout.plan(GgufTarget(format="gguf", type=kind), "0" * 64, snapshot, "bench")
    return writer.write(plan, snapshot, folder, importance={}, threads=THREADS, progress=silent)


def quantize(base: Path, out: Path, kind: str) -> float:
    """llama.cpp's own file; seconds."""
    import llama_cpp as library

    params = library.llama_model_quantize_default_params()
    params.nthread, params.ftype = THREADS, FILE_TYPE[kind]
    started = time.perf_counter()
    if library.llama_model_quantize(str(base).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama_model_quantize failed on {kind}")
    return time.perf_counter() - started


def measure(model: str, kinds: list[str], text: texts.Text, chunks: int, work: Path) -> list[dict[str, Any]]:
    snapshot = open_model(model, work)
    assert snapshot.tokenizer is not None
    tokens = corpus.cut(text.path, snapshot.tokenizer, chunks=chunks, length=512)
    hidden = walk.walk(snapshot.config, snapshot.weights, tokens, threads=THREADS)
    head = walk.head(snapshot.config, snapshot.weights, threads=THREADS)

    def score(path: Path) -> Scores:
        runner = llama_cpp.open_runner(path, context=512, threads=THREADS)
        try:
            return scoring.score(runner, tokens, hidden, head)
        finally:
            runner.close()

    base = write(snapshot, "F16", work).path
    rows = []
    for kind in kinds:
        ours, theirs = write(snapshot, kind, work), work / "theirs.gguf"
        seconds = quantize(base, theirs, kind)
        one, other = score(ours.path), score(theirs)
        kld, their_kld = estimate(one.kld), estimate(other.kld)
        rows.append(
            {
                "model": model,
                "type": kind,
                "imatrix": False,
                "codes": "search",
                "bytes": ours.nbytes,
                "llamacpp_bytes": theirs.stat().st_size,
                "kld": round(kld.mean, 5),
                "kld_se": round(kld.error, 5),
                "llamacpp_kld": round(their_kld.mean, 5),
                "llamacpp_kld_se": round(their_kld.error, 5),
                "kld_ratio": round(kld.mean / their_kld.mean, 3),
                "ppl_ratio": round(math.exp(estimate(one.nll_artefact - one.nll_reference).mean), 4),
                "llamacpp_ppl_ratio": round(math.exp(estimate(other.nll_artefact - other.nll_reference).mean), 4),
                "same_top": round(estimate(one.same_top).mean, 4),
                "seconds": round(ours.seconds, 2),
                "llamacpp_seconds": round(seconds, 2),
                "time_ratio": round(seconds / ours.seconds, 2),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 chunks of 512 tokens in place of 16")
    parser.add_argument("--text", default=str(SHARED) if SHARED.exists() else texts.BUILTIN)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = texts.fetch(given.text, work)
        print(f"text {text.name}, sha256 {hashlib.sha256(text.path.read_bytes()).hexdigest()}", file=sys.stderr)
        chunks = 8 if given.quick else 16
        rows = [row for model in given.models for row in measure(model, given.types, text, chunks, work)]
    print(json.dumps({"bench": "gguf", "text": text.name, "text_sha256": text.sha256, "rows": rows}))


if __name__ == "__main__":
    main()
