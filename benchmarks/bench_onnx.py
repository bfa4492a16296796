"""ONNX folders beside what others make of the same weights: size, quality, speed, and what making them took.

Peers: onnxruntime-genai's own builder at int8 and int4, and onnxruntime's quantize_dynamic on the float32 graph. A child
process makes each artefact, its clock starts after imports. Quality is by llama-perplexity's protocol in onnxruntime; speed
from child processes in turns, against the float32 graph of the same weights in the same run.

    python benchmarks/bench_onnx.py [--quick] [--text FILE] [--calibration FILE] [--models smollm2 minilm] [--only SCHEME ...]
                                    [--work FOLDER] [--mistral7b FOLDER]

--mistral7b makes bits8 of a random checkpoint of that shape (14.5 GB, written once into FOLDER) instead.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from models import MINILM, SMOLLM2, open_model, write_mistral7b
from scipy.stats import spearmanr

from quantkit import heads, memory, pipeline, recipe_file, serving, source, walk
from quantkit.calibration import corpus
from quantkit.checks import embedding, scoring
from quantkit.checks.verdict import estimate
from quantkit.engines import onnxruntime_decoder, onnxruntime_encoder, onnxruntime_speed
from quantkit.formats.carried import carried
from quantkit.formats.onnx import layout, writer
from quantkit.job import Options
from quantkit.progress import silent
from quantkit.source import text as texts
from quantkit.values import F32, Snapshot, Speed

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
THREADS = 2
LENGTH = 512
SENTENCES = 500
OURS: Mapping[str, dict[str, Any]] = {
    "bits8": {"bits": 8, "sym": False, "imatrix": True},
    "bits4": {
        "bits": 4,
        "sym": False,
        "codes": "gptq",
        "imatrix": True,
        "rules": [{"match": "lm_head*", "block": 64}],
    },
    "fast-prefill": {"bits": 8, "sym": False, "imatrix": True, "scheme": "fast-prefill"},
    "encoder": {"bits": 8, "imatrix": True},
    "bits8-plain": {"bits": 8, "sym": False},
}
PEERS = ("builder-int8", "builder-int4", "dynamic")
SCHEMES = {"smollm2": (*PEERS, "bits8", "bits4", "fast-prefill"), "minilm": ("dynamic", "encoder")}


def made(scheme: str, uri: str, calibration: str, work: Path) -> dict[str, Any]:
    """In a process of its own: an artefact of ours or of a peer; its graph, what it took."""
    memory.reset_peak()
    began = time.perf_counter()
    graph = ours(scheme, uri, calibration, work) if scheme in OURS else peer(scheme, work)
    seconds = time.perf_counter() - began
    files = [graph, *graph.parent.glob(f"{graph.name}*data")]
    return {
        "graph": str(graph), "bytes": sum(file.stat().st_size for file in files), "build_seconds": round(seconds, 1),
        "build_peak_rss_mb": round(memory.peak() / 1e6, 1),
    }  # fmt: skip


def ours(scheme: str, uri: str, calibration: str, work: Path) -> Path:
    tokens = 32768 if OURS[scheme].get("codes") == "gptq" else 16384
    document: dict[str, Any] = {"source": uri, "targets": [{"format": "onnx", **OURS[scheme]}], "checks": False}
    if calibration:
        document["calibration"] = {"text": calibration, "tokens": tokens, "length": LENGTH}
    recipe = recipe_file.parse(json.dumps(document), scheme, "the benchmark")
    manifest = pipeline.convert(recipe, Options(work_dir=work, threads=THREADS), silent)
    return work / scheme / manifest.targets[0].file


def peer(scheme: str, work: Path) -> Path:
    """Of the checkpoint in work/original, or of the float32 graph in work/float."""
    place = work / scheme
    place.mkdir()
    if scheme == "dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        graph = next((work / "float").rglob("*.onnx"))
        large = graph.with_name(f"{graph.name}.data").exists()
        quantize_dynamic(graph, place / "model.onnx", weight_type=QuantType.QUInt8, use_external_data_format=large)
        for document in graph.parent.glob("*.json"):
            shutil.copy(document, place)
        return place / "model.onnx"
    import importlib

    builder = importlib.import_module("onnxruntime_genai.models.builder")
    where = {"model_name": "", "input_path": str(work / "original"), "output_dir": str(place), "cache_dir": str(work / "cache")}
    where |= {"precision": scheme.removeprefix("builder-"), "execution_provider": "cpu"}
    builder.create_model(**where, **builder.parse_extra_options(**where, extra_options=[]))
    shutil.copy(work / "original" / "config.json", place)
    return place / "model.onnx"


def save(snapshot: Snapshot, place: Path) -> None:
    """The checkpoint as a folder in float32, for the peers that read no GGUF file."""
    from safetensors.numpy import save_file

    place.mkdir()
    names = [
        name for name in snapshot.weights.infos if not (name == "lm_head.weight" and snapshot.config["tie_word_embeddings"])
    ]
    save_file({name: snapshot.weights.read(name) for name in names}, place / "model.safetensors", {"format": "pt"})
    for name, text in carried(snapshot).items():
        (place / name).write_text(text, encoding="utf-8")


def float_graph(snapshot: Snapshot, place: Path) -> Path:
    place.mkdir()
    plan = layout.plan(serving.FLOAT, "", snapshot, "float")
    return writer.write(plan, snapshot, place, importance={}, solved=None, threads=THREADS, progress=silent).path


Judge = Callable[[Path], dict[str, float]]


def decoder_judge(snapshot: Snapshot, text: Path, chunks: int) -> Judge:
    assert snapshot.tokenizer is not None
    tokens = corpus.cut(text, snapshot.tokenizer, chunks=chunks, length=LENGTH)
    hidden = walk.walk(snapshot.config, snapshot.weights, tokens, threads=THREADS)
    head = heads.project(snapshot.config, snapshot.weights, threads=THREADS)

    def judge(graph: Path) -> dict[str, float]:
        with closing(onnxruntime_decoder.open_runner(graph, context=LENGTH, threads=THREADS)) as runner:
            scores = scoring.score(
                lambda index: runner.logits(tokens[index].tolist()),
                tokens,
                hidden,
                head,
                first=LENGTH // 2,
                engine=runner.engine,
            )
        kld, ratio = estimate(scores.kld), estimate(scores.nll_artefact - scores.nll_reference)
        return {
            "kld": round(kld.mean, 5), "kld_se": round(kld.error, 5), "top1": round(float(scores.same_top.mean()), 4),
            "ppl_ratio": round(float(np.exp(ratio.mean)), 4),
        }  # fmt: skip

    return judge


def encoder_judge(snapshot: Snapshot, text: Path, reference: Path) -> Judge:
    """Embeddings of SENTENCES sentences of the text against the float32 graph's."""
    from tokenizers import Tokenizer

    assert snapshot.tokenizer is not None
    engine = Tokenizer.from_str(json.dumps(dict(snapshot.tokenizer.definition)))
    engine.enable_truncation(128)
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", " ".join(text.read_text(encoding="utf-8").split()))]
    varied = [part for part in found if 20 < len(part) < 500]
    chosen = np.random.default_rng(0).choice(len(varied), SENTENCES, replace=False)
    tokens = [engine.encode(varied[index]).ids for index in sorted(chosen)]

    def embed(graph: Path) -> F32:
        with closing(onnxruntime_encoder.open_embedder(graph, threads=THREADS)) as embedder:
            rows = np.concatenate([embedding.embed(embedder, np.array([text])) for text in tokens])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    theirs = embed(reference)
    pairs = np.triu_indices(SENTENCES, 1)

    def judge(graph: Path) -> dict[str, float]:
        mine = embed(graph)
        rank = spearmanr((mine @ mine.T)[pairs], (theirs @ theirs.T)[pairs])[0]
        return {"cosine": round(float((mine * theirs).sum(1).mean()), 5), "spearman": round(float(rank), 5)}

    return judge


def speeds(graphs: Mapping[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Ratios to "float" of decoders, in turns; medians."""
    found: dict[str, list[Speed]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            found[name].append(onnxruntime_speed.measure(graph, kind="decoder", threads=THREADS, prompt=256, decode=48))

    def ratio(name: str, what: str) -> float:
        pairs = zip(found[name], found["float"], strict=True)
        return round(float(statistics.median(getattr(one, what) / getattr(other, what) for one, other in pairs)), 3)

    keys = {"decode_ratio": "decode_tokens_per_s", "prefill_ratio": "prefill_tokens_per_s"}
    return {name: {key: ratio(name, what) for key, what in keys.items()} for name in graphs}


BATCHES = """
import json, statistics, sys, time
import numpy as np
from pathlib import Path
from quantkit.engines import onnxruntime_decoder, onnxruntime_encoder
session = onnxruntime_decoder.session(Path(sys.argv[1]), threads=2)
found = []
for batch, count in ((1, 40), (8, 10)):
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, 128))
    times = []
    for _ in range(count):
        start = time.perf_counter()
        onnxruntime_encoder.states(session, ids, np.ones_like(ids))
        times.append(time.perf_counter() - start)
    found.append(statistics.median(times))
print(json.dumps(found))
"""


def batch_speeds(graphs: Mapping[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Ratios to "float" of encoders at 1 and at 8 texts of 128 tokens, in turns; medians."""
    found: dict[str, list[list[float]]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            child = subprocess.run([sys.executable, "-c", BATCHES, str(graph)], capture_output=True, text=True, check=True)
            found[name].append(json.loads(child.stdout.splitlines()[-1]))

    def ratio(name: str, at: int) -> float:
        pairs = zip(found[name], found["float"], strict=True)
        return round(float(statistics.median(theirs[at] / mine[at] for mine, theirs in pairs)), 3)

    return {name: {"prefill_ratio": ratio(name, 0), "prefill_ratio_batch8": ratio(name, 1)} for name in graphs}


def measure(model: str, schemes: list[str], text: Path, calibration: Path, *, quick: bool, work: Path) -> list[dict[str, Any]]:
    uri = SMOLLM2 if model == "smollm2" else MINILM
    snapshot = open_model(model, work) if model == "smollm2" else source.fetch(source.describe(uri), silent)
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        place = Path(temporary)
        graphs, facts = {"float": float_graph(snapshot, place / "float")}, dict[str, dict[str, Any]]()
        if any(scheme.startswith("builder") for scheme in schemes):
            save(snapshot, place / "original")
        for scheme in schemes:
            given = ["--make", scheme, "--uri", uri, "--calibration", str(calibration), "--work", str(place)]
            child = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=False)
            if child.returncode != 0:
                raise SystemExit(f"{scheme}: {child.stderr[-2000:]}")
            facts[scheme] = json.loads(child.stdout.splitlines()[-1])
            graphs[scheme] = Path(facts[scheme].pop("graph"))
            print(scheme, facts[scheme], file=sys.stderr, flush=True)
        if model == "smollm2":
            judge, timed = decoder_judge(snapshot, text, 16), speeds(graphs, 3 if quick else 5)
        else:
            judge, timed = encoder_judge(snapshot, text, graphs["float"]), batch_speeds(graphs, 3 if quick else 5)
        rows = []
        for scheme in schemes:
            rows.append({"model": model, "scheme": scheme, **facts[scheme], **judge(graphs[scheme]), **timed[scheme]})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def mistral7b(folder: Path) -> dict[str, Any]:
    """bits8 without calibration of a random checkpoint of Mistral 7B's shape."""
    place = folder / "mistral7b"
    if not (place / "config.json").exists():
        write_mistral7b(place)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        given = ["--make", "bits8-plain", "--uri", str(place), "--calibration", "", "--work", temporary]
        child = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=True)
        found = json.loads(child.stdout.splitlines()[-1])
        largest = Path(found.pop("graph")).stat().st_size
    return {"model": "mistral7b-shaped", "scheme": "bits8", **found, "graph_bytes": largest}


def default(name: str) -> str:
    return str(DATA / name) if (DATA / name).exists() else "builtin:python-docs"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the same rows, timed in 3 rounds and not in 5")
    parser.add_argument("--text", default=default("wiki.test.raw"))
    parser.add_argument("--calibration", default=default("wikitext2-valid.txt"))
    parser.add_argument("--models", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--only", nargs="+", help="schemes")
    parser.add_argument("--work", type=Path, help="keep the models here")
    parser.add_argument("--mistral7b", type=Path)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        print(json.dumps(made(given.make, given.uri, given.calibration, given.work)))
        return
    if given.mistral7b:
        print(json.dumps({"bench": "onnx", "rows": [mistral7b(given.mistral7b)]}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        text, calibration = texts.fetch(given.text, work), texts.fetch(given.calibration, work)
        for what, each in (("text", text), ("calibration", calibration)):
            print(f"{what} {each.name}, sha256 {each.sha256}", file=sys.stderr)
        rows = []
        for model in given.models:
            schemes = [scheme for scheme in SCHEMES[model] if given.only is None or scheme in given.only]
            if schemes:
                rows += measure(model, schemes, text.path, calibration.path, quick=given.quick, work=work)
        digests = {"text_sha256": text.sha256, "calibration": calibration.name, "calibration_sha256": calibration.sha256}
        print(json.dumps({"bench": "onnx", "text": text.name, **digests, "rows": rows}))


if __name__ == "__main__":
    main()
