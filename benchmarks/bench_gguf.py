"""Divergence of our GGUF files from the original, beside llama.cpp's own of the same type, size and source, in one run.

Both start from the same weights: ours from the source, llama.cpp's (`llama_model_quantize`) from our F16 file of it, with the
same importance matrix, which our walk over the calibration text measures. Both are measured in llama.cpp by
llama-perplexity's protocol against the original, which is walked in float32. kld_ratio is ours / theirs, diff_se the standard
error of the difference (paired by chunk); time_ratio is theirs / ours, and theirs does not count the F16 file that it starts
from.

Rows of codes gptq are whole runs (walk and all) in a process of their own, calibrated on the same 32,768 tokens; walk_ratio is
what one takes over what the walk for the importance of these tokens alone takes in the same process after it. They are
measured on a second text, unlike the calibration's, too (second_*), and in torch (torch_kld): `agree` says that both engines'
divergences lie within two standard errors of their difference and 0.005, for llama.cpp rounds activations to 8 bits.

checkpoint_peak_rss_mb: of a run that makes a GPTQ checkpoint (4 bits, group 32) of the same model and tokens, once per model.

outer_kld: what embedding and head alone contribute: of a file whose other tensors are F16, with importance, once per model and
type.

    python benchmarks/bench_gguf.py [--quick] [--text FILE] [--second FILE] [--calibration FILE]
                                    [--models smollm2 smollm2-rot768] [--types Q4_K_M ...] [--codes search gptq]
                                    [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import subjects
from models import SMOLLM2
from subjects import CALIBRATION, Subject

from quantkit import memory, pipeline, recipe_file, source
from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import estimate
from quantkit.engines import llama_cpp_quantizer
from quantkit.formats.gguf import layout, writer
from quantkit.formats.gguf.mixture import FILE_TYPE
from quantkit.job import Options
from quantkit.progress import silent
from quantkit.source import text as texts
from quantkit.targets import GgufTarget, TypeRule
from quantkit.values import Artefact, Importance, Snapshot

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = ("smollm2", "smollm2-rot768")
TYPES = ("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
THREADS = 2
OUTER = ("token_embd.weight", "output.weight")
ROUNDING = 0.005  # nats: llama.cpp's, of activations


def write(snapshot: Snapshot, target: GgufTarget, folder: Path, weighed: Mapping[str, Importance]) -> Artefact:
    plan = layout.plan(target, "0" * 64, snapshot, "bench")
    return writer.write(plan, snapshot, folder, importance=weighed, threads=THREADS, progress=silent)


def stock(kind: Any, weighed: Mapping[str, Importance]) -> GgufTarget:
    return GgufTarget(format="gguf", type=kind, imatrix=bool(weighed))


def outer_kld(given: Subject, kind: str, work: Path) -> float:
    """Mean KLD of embedding and head in the types of a mixture, with all else as F16."""
    planned = layout.plan(stock(kind, given.importance), "0" * 64, given.snapshot, "bench")
    rules = tuple(TypeRule(match=row.name, type=row.type) for row in planned.rows if row.name in OUTER)
    (work / "outer").mkdir(exist_ok=True)
    made = write(given.snapshot, GgufTarget(format="gguf", type="F16", rules=rules), work / "outer", given.importance)
    try:
        return estimate(score(made.path, given).kld).mean
    finally:
        made.path.unlink()


def score(path: Path, given: Subject) -> Scores:
    return subjects.score(path, given, given.first, THREADS)


@dataclass(frozen=True, slots=True)
class Made:
    """A file of ours and what it took, and what the walk for the importance of the same tokens took in the same process."""

    path: Path
    nbytes: int
    seconds: float
    peak_rss_bytes: int
    walk_seconds: float


def solve(uri: str, target: Mapping[str, Any], calibration: Path, tokens: int, work: Path) -> Made:
    """What GPTQ's engine makes, as `quantkit run` makes it without checks."""
    given = {"text": str(calibration), "tokens": tokens, "length": 512}
    document = json.dumps({"source": uri, "targets": [target], "calibration": given, "checks": False})
    command = [sys.executable, __file__, "--make", document, "--work", str(work)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(child.stdout.splitlines()[-1])
    return Made(Path(found["path"]), found["bytes"], found["seconds"], found["peak_rss_bytes"], found["walk_seconds"])


def make(document: str, work: Path) -> dict[str, Any]:
    """In a process of its own: the file of a recipe, its clock started after imports."""
    recipe = recipe_file.parse(document, "bench", "the benchmark")
    memory.reset_peak()
    began = time.perf_counter()
    manifest = pipeline.convert(recipe, Options(work_dir=work, threads=THREADS, force=True), silent)
    seconds, path = time.perf_counter() - began, work / "bench" / manifest.targets[0].file
    found = {"path": str(path), "bytes": path.stat().st_size, "seconds": seconds, "peak_rss_bytes": memory.peak()}
    calibration, snapshot = recipe.recipe.calibration, source.fetch(source.describe(recipe.recipe.source), silent)
    assert calibration is not None
    ((text, _),) = calibration.counts()
    began = time.perf_counter()
    subjects.weigh(snapshot, Path(text), calibration.sequences, THREADS)
    return found | {"walk_seconds": time.perf_counter() - began}


def measure(
    model: str,
    given: Subject,
    kind: str,
    weighed: Mapping[str, Importance],
    base: Path,
    work: Path,
    outer: float,
    solved: Made | None = None,
    checkpoint: Made | None = None,
) -> dict[str, Any]:
    """One row; of the file `solved`, or of one whose codes are searched."""
    ours, theirs = solved or write(given.snapshot, stock(kind, weighed), work, weighed), work / "theirs.gguf"
    seconds = llama_cpp_quantizer.quantise(base, theirs, llama_cpp_quantizer.Wish(FILE_TYPE[kind]), weighed, THREADS)
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
        "outer_kld": round(outer, 5),
        "ppl_ratio": round(math.exp(estimate(one.nll_artefact - one.nll_reference).mean), 4),
        "llamacpp_ppl_ratio": round(math.exp(estimate(other.nll_artefact - other.nll_reference).mean), 4),
        "same_top": round(estimate(one.same_top).mean, 4),
        "seconds": round(ours.seconds, 2),
        "llamacpp_seconds": round(seconds, 2),
        "time_ratio": round(seconds / ours.seconds, 2),
        "peak_rss_mb": round(ours.peak_rss_bytes / 1e6, 1),
    }
    if solved:
        times = {"walk_seconds": round(solved.walk_seconds, 2), "walk_ratio": round(solved.seconds / solved.walk_seconds, 2)}
        row |= times | further(given, ours.path, theirs, one)
    if checkpoint:
        row["checkpoint_peak_rss_mb"] = round(checkpoint.peak_rss_bytes / 1e6, 1)
    ours.path.unlink()
    print(row, file=sys.stderr)
    return row


def further(given: Subject, ours: Path, theirs: Path, one: Scores) -> dict[str, Any]:
    """Both files on the second text, and ours in torch, beside its scores `one` in llama.cpp."""
    second, their_second = (subjects.score(path, given, given.second, THREADS).kld for path in (ours, theirs))
    in_torch = subjects.score_in_torch(ours, given, given.first, THREADS).kld
    apart = estimate(in_torch - one.kld)
    return {
        "second_kld": round(estimate(second).mean, 5),
        "second_llamacpp_kld": round(estimate(their_second).mean, 5),
        "second_kld_ratio": round(estimate(second).mean / estimate(their_second).mean, 3),
        "torch_kld": round(estimate(in_torch).mean, 5),
        "torch_kld_se": round(estimate(in_torch).error, 5),
        "agree": abs(apart.mean) <= 2 * apart.error + ROUNDING,
    }


def default(name: str) -> str:
    return str(DATA / name) if (DATA / name).exists() else texts.BUILTIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no rows without importance")
    parser.add_argument("--text", default=default("wiki.test.raw"))
    parser.add_argument("--second", default=texts.BUILTIN, help="a text unlike the calibration's, for codes gptq")
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
        text, second, calibration = (texts.fetch(uri, work) for uri in (given.text, given.second, given.calibration))
        for name, found in (("text", text), ("second", second), ("calibration", calibration)):
            print(f"{name} {found.name}, sha256 {found.sha256}", file=sys.stderr)
        rows = []
        for model in given.models:
            of = subjects.subject(model, text, second, calibration, THREADS, work)
            base = write(of.snapshot, stock("F16", {}), work, {}).path
            uri = SMOLLM2 if model == "smollm2" else str(work / model)
            run = partial(solve, uri, calibration=calibration.path, tokens=given.tokens, work=work)
            checkpoint = run({"format": "gptq", "bits": 4, "group": 32}) if "gptq" in given.codes else None
            for kind in given.types:
                outer = outer_kld(of, kind, work)
                for weighed in (of.importance,) if given.quick else (of.importance, {}):
                    if "search" in given.codes:
                        rows.append(measure(model, of, kind, weighed, base, work, outer))
                if "gptq" in given.codes:
                    made = run({"format": "gguf", "type": kind, "codes": "gptq"})
                    rows.append(measure(model, of, kind, of.importance, base, work, outer, made, checkpoint))
            base.unlink()
    named = {"text": text.name, "text_sha256": text.sha256, "second": second.name, "calibration": calibration.name}
    print(
        json.dumps(
            {"bench": "gguf", **named, "second_sha256": second.sha256, "calibration_sha256": calibration.sha256, "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
