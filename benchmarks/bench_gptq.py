"""GPTQ checkpoints: time and memory to make them, and how far they are from the original, beside rounding to nearest and plain
GPTQ (least and greatest weight, natural order) on the same text in the same run.

A child process makes each checkpoint as `quantkit run` does without checks: its clock starts after imports. Quality is by
llama-perplexity's protocol on the dequantised checkpoint, run block by block in float32 against the original.

    python benchmarks/bench_gptq.py [--quick] [--text FILE] [--calibration FILE] [--models ...] [--work FOLDER] [--layer]
                                    [--only NUMBER ...]

--layer measures one decoder layer of Mistral 7B's shape at 32,768 tokens instead; --mixes what SmolLM2 is calibrated on, by its
divergence on the evaluation text and on one unlike it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import SMOLLM2, open_model, write_mistral7b
from numpy.typing import NDArray

from quantkit import heads, memory, pipeline, recipe_file, source, walk
from quantkit.calibration import corpus
from quantkit.checks import scoring
from quantkit.checks.scoring import Scores
from quantkit.checks.verdict import estimate
from quantkit.formats.gptq import layout
from quantkit.job import Options
from quantkit.kernels import gptq, hessian
from quantkit.progress import silent
from quantkit.source import text as texts
from quantkit.values import F32, Inputs, Snapshot, TensorInfo

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
THREADS = 2
CHUNKS = 16
LENGTH = 512
# model, tokens, target; those of the limits first
ROWS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("smollm2", 32768, {"bits": 4, "group": 64, "sym": True}),
    ("smollm2", 32768, {"bits": 4, "group": 64, "sym": False}),
    ("smollm2", 32768, {"bits": 4, "group": 64, "sym": True, "quality": "high"}),
    ("smollm2", 32768, {"bits": 4, "group": 64, "sym": False, "quality": "high"}),
    ("smollm2-rot768", 16384, {"bits": 4, "group": 32, "sym": True}),
    ("smollm2-rot768", 16384, {"bits": 4, "group": 64, "sym": True}),
    ("smollm2-rot768", 16384, {"bits": 4, "group": 64, "sym": False}),
    ("smollm2-rot768", 16384, {"bits": 3, "group": 64, "sym": True}),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what it says of the evaluation text."""

    snapshot: Snapshot
    tokens: NDArray[np.int32]
    hidden: F32
    head: Callable[[F32], F32]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A checkpoint's weights with some in another's place."""

    base: Any
    found: Mapping[str, gptq.Solved]

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        infos: Mapping[str, TensorInfo] = self.base.infos
        return infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        if name in self.found:
            return self.found[name].weights(start, stop)
        rows: F32 = self.base.read(name, start, stop)
        return rows

    def close(self) -> None:
        pass


def subject(model: str, text: texts.Text, work: Path) -> Subject:
    snapshot = open_model(model, work)
    assert snapshot.tokenizer is not None
    tokens = corpus.cut(text.path, snapshot.tokenizer, chunks=CHUNKS, length=LENGTH)
    hidden = walk.walk(snapshot.config, snapshot.weights, tokens, threads=THREADS)
    return Subject(snapshot, tokens, hidden, heads.project(snapshot.config, snapshot.weights, threads=THREADS))


def score(given: Subject, weights: Any) -> Scores:
    hidden = walk.walk(given.snapshot.config, weights, given.tokens, threads=THREADS)
    return scoring.score(
        lambda index: given.head(hidden[index]), given.tokens, given.hidden, given.head, first=LENGTH // 2, engine="torch"
    )


def recipe(uri: str, target: Mapping[str, Any], calibration: Path, tokens: int) -> str:
    settings = {"text": str(calibration), "tokens": tokens, "length": LENGTH}
    return json.dumps({"source": uri, "targets": [{"format": "gptq", **target}], "calibration": settings, "checks": False})


def make(text: str, work: Path) -> dict[str, Any]:
    """In a process of its own: a checkpoint, its folder, what it took."""
    document = recipe_file.parse(text, "bench", "the benchmark")
    memory.reset_peak()
    began = time.perf_counter()
    manifest = pipeline.convert(document, Options(work_dir=work, threads=THREADS), silent)
    seconds = time.perf_counter() - began
    folder = work / "bench" / Path(manifest.targets[0].file).parent
    return {"folder": str(folder), "seconds": round(seconds, 1), "peak_rss_mb": round(memory.peak() / 1e6, 1)}


def peer(given: Subject, calibration: Path, target: Mapping[str, Any], tokens: int, *, plain: bool) -> Scores:
    """Rounding to nearest, or plain GPTQ: on grids of the least and greatest weight, columns in their natural order."""
    assert given.snapshot.tokenizer is not None
    bits, group, symmetric = target["bits"], target["group"], target["sym"]
    names = layout.matrices(given.snapshot)
    found: dict[str, gptq.Solved] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        if not plain:
            for name in names:
                found[name] = _rounded(given.snapshot.weights.read(name), bits, group, symmetric, pool)
            return score(given, Replaced(given.snapshot.weights, found))
        sequences = corpus.cut(calibration, given.snapshot.tokenizer, chunks=tokens // LENGTH, length=LENGTH, seed=0)

        def replace(weights: Mapping[str, F32], inputs: Inputs) -> dict[str, F32]:
            factor = hessian.factor(inputs, 0.01, pool, act_order=False)
            for name, weight in weights.items():
                grid = _rounded(weight, bits, group, symmetric, pool).grid
                found[name] = gptq.solve(weight, grid, factor, pool)
            return {name: found[name].weights() for name in weights}

        lane = walk.Lane(slice(0, len(sequences)), replace)
        walk.walk(given.snapshot.config, given.snapshot.weights, sequences, threads=THREADS, lanes=[lane])
    return score(given, Replaced(given.snapshot.weights, found))


def _rounded(weight: F32, bits: int, group: int, symmetric: bool, pool: Executor) -> gptq.Solved:
    ones = np.ones(weight.shape[1], np.float32)
    grid = gptq.fit(weight, ones, bits=bits, group=group, symmetric=symmetric, pool=pool, search=False)
    return gptq.Solved(grid, gptq.nearest(weight, grid), 0.0)


def measure(
    row: tuple[str, int, dict[str, Any]], given: Subject, calibration: Path, work: Path, peers: dict[str, Scores]
) -> dict[str, Any]:
    """One row; what its peers were measured at is kept in `peers` for others of the same grid."""
    model, tokens, target = row
    uri = SMOLLM2 if model == "smollm2" else str(work / model)
    with tempfile.TemporaryDirectory(dir=work) as place:
        command = [sys.executable, __file__, "--make", recipe(uri, target, calibration, tokens), "--work", place]
        made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        scores = score(given, source.describe(made["folder"]).weights)
    kld = estimate(scores.kld)
    ratio = estimate(scores.nll_artefact - scores.nll_reference)
    kind = f"{model} {target['bits']} {target['group']} {target['sym']}"
    for name, plain in (("rtn", False), ("plain_gptq", True)):
        if f"{kind} {name}" not in peers:
            peers[f"{kind} {name}"] = peer(given, calibration, target, tokens, plain=plain)
    others = {f"{name}_kld": round(estimate(peers[f"{kind} {name}"].kld).mean, 5) for name in ("rtn", "plain_gptq")}
    return {
        "model": model, "quality": "standard", **target, "tokens": tokens, "seconds": made["seconds"],
        "peak_rss_mb": made["peak_rss_mb"], "kld": round(kld.mean, 5), "kld_se": round(kld.error, 5),
        "ppl_ratio": round(float(np.exp(ratio.mean)), 4), **others,
    }  # fmt: skip


def layer(work: Path) -> dict[str, Any]:
    """One decoder layer of Mistral 7B's shape, 64 sequences of 512 tokens, in a process of its own."""
    command = [sys.executable, __file__, "--make-layer", "--work", str(work)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def make_layer(work: Path) -> dict[str, Any]:
    place = work / "mistral7b-1"
    if not (place / "config.json").exists():
        write_mistral7b(place, layers=1)
    snapshot = source.fetch(source.describe(str(place)), silent)
    tokens = np.random.default_rng(0).integers(0, snapshot.config["vocab_size"], (64, LENGTH)).astype(np.int32)
    seconds = {"factor": 0.0, "codes": 0.0}
    memory.reset_peak()
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:

        def replace(weights: Mapping[str, F32], inputs: Inputs) -> dict[str, F32]:
            start = time.perf_counter()
            factor = hessian.factor(inputs, 0.01, pool)
            seconds["factor"] += time.perf_counter() - start
            replaced = {}
            start = time.perf_counter()
            for name, weight in weights.items():
                grid = gptq.fit(weight, factor.diagonal, bits=4, group=128, symmetric=True, pool=pool)
                replaced[name] = gptq.solve(weight, grid, factor, pool).weights()
            seconds["codes"] += time.perf_counter() - start
            return replaced

        lane = walk.Lane(slice(0, 64), replace)
        walk.walk(snapshot.config, snapshot.weights, tokens, threads=THREADS, lanes=[lane], narrow=True)
    total = time.perf_counter() - began
    return {
        "model": "mistral7b-shaped, one layer", "tokens": tokens.size, "seconds": round(total, 1),
        "factor_seconds": round(seconds["factor"], 1), "codes_seconds": round(seconds["codes"], 1),
        "hours_for_32_layers": round(32 * total / 3600, 2), "peak_rss_mb": round(memory.peak() / 1e6, 1),
    }  # fmt: skip


def mixes(text: texts.Text, calibration: texts.Text, work: Path) -> list[dict[str, Any]]:
    """smollm2, 4 bits, group 64, symmetric, 16,384 tokens of every mix of texts."""
    docs, own, wiki = "builtin:python-docs", "self", str(calibration.path)
    found: dict[str, Any] = {"python-docs": docs, "self": own, calibration.name: wiki}
    for name, parts in {"python-docs + self": (docs, own), f"python-docs + {calibration.name}": (docs, wiki)}.items():
        found[name] = [{"text": part, "share": 0.5} for part in parts]
    other = texts.fetch(docs, work)
    given = {each.name: subject("smollm2", each, work) for each in (text, other)}
    rows = []
    for name, mix in found.items():
        settings = {"text": mix, "tokens": 16384, "length": LENGTH}
        target = {"format": "gptq", "bits": 4, "group": 64}
        document = json.dumps({"source": SMOLLM2, "targets": [target], "calibration": settings, "checks": False})
        with tempfile.TemporaryDirectory(dir=work) as place:
            command = [sys.executable, __file__, "--make", document, "--work", place]
            made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            weights = source.describe(made["folder"]).weights
            klds = {each: estimate(score(one, weights).kld) for each, one in given.items()}
        rows.append(
            {"calibration": name, "seconds": made["seconds"]} | {f"kld {each}": round(k.mean, 5) for each, k in klds.items()}
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def default(name: str) -> str:
    return str(DATA / name) if (DATA / name).exists() else "builtin:python-docs"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the same rows: each is made once anyway")
    parser.add_argument("--text", default=default("wiki.test.raw"))
    parser.add_argument("--calibration", default=default("wikitext2-valid.txt"))
    parser.add_argument("--models", nargs="+", default=["smollm2", "smollm2-rot768"])
    parser.add_argument("--only", nargs="+", type=int, help="rows by their number, from 0")
    parser.add_argument("--work", type=Path, help="keep the models here")
    parser.add_argument("--layer", action="store_true")
    parser.add_argument("--mixes", action="store_true")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--make-layer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make or given.make_layer:
        print(json.dumps(make(given.make, given.work) if given.make else make_layer(given.work)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        if given.layer:
            print(json.dumps({"bench": "gptq", "rows": [layer(work)]}))
            return
        text, calibration = texts.fetch(given.text, work), texts.fetch(given.calibration, work)
        for what, each in (("text", text), ("calibration", calibration)):
            print(f"{what} {each.name}, sha256 {each.sha256}", file=sys.stderr)
        if given.mixes:
            print(json.dumps({"bench": "gptq", "rows": mixes(text, calibration, work)}))
            return
        rows, subjects, peers = [], dict[str, Subject](), dict[str, Scores]()
        for number, row in enumerate(ROWS):
            if row[0] in given.models and (given.only is None or number in given.only):
                if row[0] not in subjects:
                    subjects[row[0]] = subject(row[0], text, work)
                rows.append(measure(row, subjects[row[0]], calibration.path, work, peers))
                print(rows[-1], file=sys.stderr, flush=True)
        digests = {"text_sha256": text.sha256, "calibration": calibration.name, "calibration_sha256": calibration.sha256}
        print(json.dumps({"bench": "gptq", "text": text.name, **digests, "rows": rows}))


if __name__ == "__main__":
    main()
