"""What this machine is: CPU, instruction sets, cores, memory and the versions of what runs here."""

from __future__ import annotations

import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

from quantkit.manifest import MachineRecord

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

# As /proc/cpuinfo spells them -> as people write them. Only what the engines choose kernels by.
_FLAGS = {
    "sse4_2": "SSE4.2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx": "AVX",
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512F",
    "avx512bw": "AVX512BW",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
    "sve": "SVE",
}

# The x86-64 psABI's micro-architecture levels, by the flags that each adds (of those that Linux lists).
_X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    ("x86-64-v2", {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
)

_PACKAGES = (
    "gguf", "huggingface_hub", "llama-cpp-python", "numba", "numpy", "onnxruntime", "safetensors", "scipy",
    "tokenizers", "torch", "transformers",
)  # fmt: skip


def describe() -> MachineRecord:
    """This machine, as a manifest records it."""
    facts = _cpuinfo()
    return MachineRecord(
        cpu=facts.get("model name") or facts.get("hardware") or platform.processor() or platform.machine(),
        cpu_class=cpu_class(_flags(facts), platform.machine()),
        instruction_sets=instruction_sets(),
        cores=cores(),
        memory_bytes=memory_bytes(),
        platform=platform.platform(terse=True),
        python=platform.python_version(),
        versions=versions(),
    )


def instruction_sets() -> list[str]:
    """Instruction sets of this CPU that decide which kernels run, as ["AVX2", "AVX512F"]; empty without /proc."""
    flags = _flags(_cpuinfo())
    return [name for flag, name in _FLAGS.items() if flag in flags]


def cpu_class(flags: frozenset[str], machine: str) -> str:
    """The class of CPUs that artefact bytes are promised for: an x86-64 level, or an ARM level by its features."""
    if machine in ("x86_64", "AMD64"):
        met = frozenset[str]()
        level = "x86-64"
        for name, added in reversed(_X86_LEVELS):
            met |= added
            if not met <= flags:
                break
            level = name
        return level
    if machine in ("aarch64", "arm64"):
        return "-".join(["aarch64", *(flag for flag in ("asimddp", "i8mm", "sve") if flag in flags)])
    return machine


def cores() -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota.split() for quota in _controls("cpu", "cpu.max")]
    shares = [int(quota) // int(period) for quota, period in quotas if quota != "max"]
    return max(1, min([allowed, *shares]))


def memory_bytes() -> int:
    """Memory of this machine, or the least limit of its cgroups, version 1 or 2, where that is smaller."""
    limits = [*_controls("memory", "memory.max"), *_controls("memory", "memory.limit_in_bytes")]
    return min([int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdecimal())])


def versions() -> dict[str, str]:
    """Installed versions of the libraries that figures and bytes depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def bandwidth(seconds: float = 1.0) -> float:
    """Memory bandwidth in bytes/s, read and write counted, by copies between arrays larger than the last-level cache.

    The best round of `seconds` counts: other work on the machine can only slow a round down.
    """
    threads = max(2, cores())
    size = min(128 << 20, memory_bytes() // 8) // threads // 8
    sources = [np.ones(size) for _ in range(threads)]
    sinks = [np.ones(size) for _ in range(threads)]  # written once before timing: a page's first touch is no bandwidth
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        end = time.perf_counter() + seconds
        while best == 0.0 or time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(np.copyto, sinks, sources))
            best = max(best, 2 * 8 * size * threads / (time.perf_counter() - start))
    return best


def throughput(seconds: float = 1.0) -> float:
    """Operations per second of float32 matrix products on all cores; a multiplication and an addition are two.

    The best round of `seconds` counts, as for `bandwidth`.
    """
    size, best = 1024, 0.0
    left, right, product = (np.ones((size, size), np.float32) for _ in range(3))
    end = time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(left, right, out=product)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, keys in lower case; empty where there is none (macOS, Windows)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _flags(facts: dict[str, str]) -> frozenset[str]:
    return frozenset((facts.get("flags") or facts.get("features") or "").split())


def _controls(controller: str, name: str) -> list[str]:
    """What a control says in this process's cgroup and in those above it, where the system has cgroups.

    Version 2 has one tree; version 1 one for each controller, in a folder of its name. In a container the own cgroup is the
    root of what is mounted, whatever path the kernel tells.
    """
    found = []
    for line in _lines(_MEMBERSHIP):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controller if controllers else _CGROUPS
        own = root / path.strip("/")
        controls = [place / name for place in (own, *own.parents) if place.is_relative_to(root)]
        found += [control.read_text(encoding="ascii").strip() for control in controls if control.is_file()]
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines() if path.is_file() else []
