"""Predicted memory beside measured: what a model adds to a process in its engine, at three contexts, for GGUF, ONNX and GPTQ.

Engines: llama.cpp for GGUF, onnxruntime-genai for ONNX, transformers with matrices dequantised to bfloat16 for GPTQ (see
quantkit/resident.py). A child process loads the model, takes a prompt of all but four tokens of the context and decodes those;
measured is the growth of its peak RSS over what it was before the model was loaded. Models: smollm2 and two of random weights,
one with sliding windows and one with as many heads for keys as for queries; they and the artefacts are kept in --work. minilm,
an encoder, reads a text of so many tokens; no GPTQ checkpoint is made of it.

    python benchmarks/bench_footprint.py [--quick] [--work FOLDER] [--models ...] [--formats ...] [--contexts ...]

Every row is the median of three runs; with --quick, one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import MANY_HEADS, MINILM, SMOLLM2, WINDOWED, write_random

from quantkit import footprint, pipeline, quality, recipe_file, requirements, resident, source
from quantkit.codecs import gguf_config
from quantkit.job import Options
from quantkit.manifest import Manifest
from quantkit.progress import silent
from quantkit.recipe import Memory
from quantkit.values import Row

THREADS = 2
CONTEXTS = Memory().contexts
RANDOM = {"windowed": WINDOWED, "many-heads": MANY_HEADS}
PACKAGED = {"smollm2": SMOLLM2, "minilm": MINILM}
MODELS = (*PACKAGED, *RANDOM)
TYPES = {"smollm2": "Q4_K_M", "minilm": "Q8_0", "windowed": "Q8_0", "many-heads": "Q4_K_M"}
FORMATS = ("gguf", "onnx", "gptq")


def made(model: str, format: str, work: Path) -> tuple[str, Path, Manifest]:
    """An artefact of a model, made once: the source's address, the build folder, the manifest."""
    if model in PACKAGED:
        uri = PACKAGED[model]
    else:
        uri = str(work / model)
        write_random(work / model, RANDOM[model])
    group = 64 if model == "smollm2" else 128  # 576 columns are no multiple of 128
    types: dict[str, dict[str, Any]] = {
        "gguf": {"type": TYPES[model]},
        "onnx": {"bits": 8},
        "gptq": {"bits": 4, "group": group},
    }
    document: dict[str, Any] = {"source": uri, "targets": [{"format": format, **types[format]}], "checks": False}
    if format == "gptq":
        document["calibration"] = {"text": "builtin:python-docs", "tokens": 1024, "length": 512}
    name = f"{model}-{format}"
    done = work / name / "manifest.json"
    if done.exists():
        return uri, done.parent, Manifest.read(done)
    recipe = recipe_file.parse(json.dumps(document), name, "the benchmark")
    return uri, done.parent, pipeline.convert(recipe, Options(work_dir=work, threads=THREADS), silent)


def rows(model: str, format: str, contexts: list[int], work: Path, repeats: int) -> Iterator[dict[str, Any]]:
    uri, folder, manifest = made(model, format, work)
    target = manifest.targets[0]
    held = [Row(t.name, t.source, tuple(t.shape), t.source_dtype, t.type, t.wanted, t.reason, t.nbytes) for t in target.tensors]
    nbytes = sum(file.nbytes for file in target.files if not file.name.endswith(".json"))
    snapshot = source.describe(uri)
    contexts = footprint.within(contexts, gguf_config.context_length(snapshot.config))
    predicted = requirements.predict(format, nbytes, held, snapshot, contexts)
    for prediction in predicted:
        runs = [
            resident.measure(
                folder / target.file,
                format=format,
                kind=quality.kind(snapshot),
                threads=THREADS,
                context=prediction.context,
            )
            for _ in range(repeats)
        ]
        growth = statistics.median(run.peak - run.before for run in runs)
        yield {
            "model": model, "format": format, "type": target.type, "context": prediction.context,
            "predicted_mb": round(prediction.growth / 1e6, 1), "measured_mb": round(growth / 1e6, 1),
            "error": round(prediction.growth / growth - 1, 4), "weights_mb": round(prediction.weights / 1e6, 1),
            "kv_mb": round(prediction.kv_cache / 1e6, 1), "engine": runs[0].engine,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the same rows, each measured once")
    parser.add_argument("--work", type=Path, help="keep models and artefacts here")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = []
        for model in given.models:
            for format in given.formats:
                if (model, format) == ("minilm", "gptq"):
                    continue
                for row in rows(model, format, given.contexts, work, 1 if given.quick else 3):
                    found.append(row)
                    print(row, file=sys.stderr, flush=True)
        print(json.dumps({"bench": "footprint", "rows": found}))


if __name__ == "__main__":
    main()
