"""A checkpoint of Mistral 7B's shape, all three formats with their checks, under a limit of memory that the kernel keeps.

Writes the checkpoint (14.5 GB of random weights, once) and runs one recipe (GGUF Q4_K_M, GPTQ at 4 bits, ONNX at 8 bits) as
`quantkit run` does, in a cgroup of its own of --limit GB and without swap: page cache counts there as everything else, and a
process that goes beyond is killed. Needs the right to make a cgroup (root). peak_rss_gb: of the process itself; the last line
says what each stage took and what each check said.

    python benchmarks/bench_limit.py --work FOLDER [--limit 12] [--formats gguf gptq onnx] [--tokens 4096] [--chunks 4]
                                     [--layers 32]

FOLDER: 45 GB of space. GPTQ takes a minute and a half for each layer on two idle cores. Random weights are no model: what
the checks say of quality means nothing here, that they ran does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from models import write_mistral7b

GROUPS = Path("/sys/fs/cgroup")
TARGETS: dict[str, dict[str, Any]] = {
    "gguf": {"format": "gguf", "type": "Q4_K_M"},
    "gptq": {"format": "gptq", "bits": 4, "group": 128, "activations": "bfloat16"},
    "onnx": {"format": "onnx", "bits": 8},
}


def group(limit: int) -> Path:
    """The folder of a new cgroup of `limit` bytes, of version 1 or 2."""
    first = (GROUPS / "memory").is_dir()
    place = (GROUPS / "memory" if first else GROUPS) / f"quantkit-{os.getpid()}"
    place.mkdir()
    (place / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    swap = place / "memory.swap.max"
    if swap.exists():
        swap.write_text("0")
    return place


def recipe(source: Path, formats: list[str], calibration: str, text: str, tokens: int, chunks: int) -> dict[str, Any]:
    used = {"calibration": {"text": calibration, "tokens": tokens, "length": 512}} if "gptq" in formats else {}
    return {
        "source": str(source),
        "targets": [TARGETS[format] for format in formats],
        "checks": {"perplexity": {"text": text, "chunks": chunks}, "latency": {"rounds": 1}},
        "prompts": ["What is the capital of France?"],
        **used,
    }


def run(document: Path, work: Path, limit: int) -> dict[str, Any]:
    """The run's last words and its manifest, measured from outside."""
    place = group(limit)
    members = place / "cgroup.procs"
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "quantkit", "run", str(document), "--json", "--work-dir", str(work)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=lambda: members.write_text(str(os.getpid())),
        )
    finally:
        place.rmdir()
    found = json.loads(done.stdout) if done.stdout else {}
    return {"exit_code": done.returncode, "seconds": round(time.perf_counter() - began), "manifest": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--limit", type=float, default=12, help="GB (10^9 bytes)")
    parser.add_argument("--tokens", type=int, default=4096, help="of calibration")
    parser.add_argument("--chunks", type=int, default=4, help="of evaluation")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--formats", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--text", default="builtin:python-docs")
    parser.add_argument("--calibration", default="builtin:python-docs")
    given = parser.parse_args()
    limit, place = int(given.limit * 1e9), given.work / f"mistral7b-{given.layers}"
    write_mistral7b(place, given.layers)
    document = given.work / "limit.yaml"
    document.write_text(json.dumps(recipe(place, given.formats, given.calibration, given.text, given.tokens, given.chunks)))
    found = run(document, given.work / "build", limit)
    manifest = found.pop("manifest")
    rows = [
        {
            "target": target["name"],
            "bytes": sum(file["nbytes"] for file in target["files"]),
            "verdict": target["verdict"],
            "checks": {check["check"]: check["verdict"] for check in target["checks"]},
            "summaries": {check["check"]: check["summary"] for check in target["checks"]},
        }
        for target in manifest.get("targets", [])
    ]
    cost = manifest.get("cost", {})
    print(
        json.dumps(
            {
                "bench": "limit", "layers": given.layers, "limit_gb": given.limit, "tokens": given.tokens, **found,
                "peak_rss_gb": round(cost.get("peak_rss_bytes", 0) / 1e9, 2),
                "disk_gb": round(cost.get("disk_bytes", 0) / 1e9, 2),
                "stages": cost.get("stages", []), "rows": rows,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
