"""What a plan says of memory, disk and size, beside what the run takes that follows it.

Each row is a recipe in a process of its own, in an empty folder. memory: the greatest of all stages; disk: the most that the
build folder held; size_exact: whether the artefacts' files are as large as planned, to the byte. wide: random weights of
another shape. A run that compiles kernels takes more than any after it: a small model goes through all formats first.

    python benchmarks/bench_plan.py [--quick] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models import SMOLLM2, write_random

CALIBRATION = {"tokens": 16384, "text": "builtin:python-docs"}
CHECKS = {"perplexity": {"chunks": 4}, "latency": {"rounds": 1}}
EVERY: list[dict[str, Any]] = [
    {"format": "gguf", "type": "Q4_K_M", "imatrix": True},
    {"format": "gptq", "bits": 4, "group": 64},
    {"format": "onnx", "bits": 8},
]
WIDE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL = WIDE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gguf", {"targets": [{"format": "gguf", "type": "Q4_K_M"}], "checks": False}),
    ("gguf-checked", {"targets": [{"format": "gguf", "type": "Q4_K_M"}], "checks": CHECKS}),
    (
        "gguf-imatrix",
        {"targets": [{"format": "gguf", "type": "Q4_K_M", "imatrix": True}], "calibration": CALIBRATION, "checks": False},
    ),
    ("gptq", {"targets": [{"format": "gptq", "bits": 4, "group": 64}], "calibration": CALIBRATION, "checks": False}),
    ("onnx", {"targets": [{"format": "onnx", "bits": 8}], "checks": False}),
    ("onnx-checked", {"targets": [{"format": "onnx", "bits": 8}], "checks": CHECKS}),
    ("gguf+gptq+onnx", {"targets": EVERY, "calibration": CALIBRATION, "checks": CHECKS}),
)
QUICK = ("gguf", "gguf-checked", "gptq", "onnx")


def measure(name: str, source: str, document: dict[str, Any], work: Path) -> dict[str, Any]:
    place = work / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    recipe = place / f"{name}.yaml"
    recipe.write_text(json.dumps({"source": source, **document}), encoding="utf-8")
    command = [sys.executable, "-m", "quantkit"]
    plan = json.loads(_output([*command, "plan", str(recipe), "--json"], place))
    manifest = json.loads(_output([*command, "run", str(recipe), "--json"], place))
    needs, cost = plan["needs"], manifest["cost"]
    planned = sum(target["nbytes"] or 0 for target in plan["targets"])
    made = {file["name"]: file["nbytes"] for target in manifest["targets"] for file in target["files"]}
    listed = {file["name"] for target in plan["targets"] for file in target["files"]}
    return {
        "recipe": name,
        "planned_mb": round(needs["memory"] / 1e6, 1),
        "peak_mb": round(cost["peak_rss_bytes"] / 1e6, 1),
        "memory_error": round(needs["memory"] / cost["peak_rss_bytes"] - 1, 3),
        "planned_disk_mb": round(needs["disk"] / 1e6, 2),
        "disk_mb": round(cost["disk_bytes"] / 1e6, 2),
        "disk_error": round(needs["disk"] / cost["disk_bytes"] - 1, 3),
        "size_exact": planned == sum(size for file, size in made.items() if file in listed),
    }


def _output(command: list[str], place: Path) -> str:
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):  # a gate that fails is no matter here
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a recipe for each format")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench-plan")
    given = parser.parse_args()
    models = {name: given.work / name for name in ("small", "wide")}
    write_random(models["small"], SMALL)
    write_random(models["wide"], WIDE)
    few = {"tokens": 1024, "text": "builtin:python-docs"}
    measure("compiled", str(models["small"]), {"targets": EVERY, "calibration": few, "checks": False}, given.work)
    rows = []
    for name, document in ROWS:
        for prefix, source in (("", SMOLLM2), ("wide-", str(models["wide"]))):
            if not given.quick or (name in QUICK and not prefix):
                rows.append(measure(f"{prefix}{name}", source, document, given.work))
                print(rows[-1], file=sys.stderr)
    print(json.dumps({"bench": "plan", "rows": rows}))


if __name__ == "__main__":
    main()
