"""What this machine is."""

import os
from pathlib import Path

import psutil
import pytest

from quantkit.report import machine

V3 = {
    "cx16",
    "lahf_lm",
    "popcnt",
    "sse4_1",
    "sse4_2",
    "ssse3",
    "avx",
    "avx2",
    "bmi1",
    "bmi2",
    "f16c",
    "fma",
    "abm",
    "movbe",
}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "kind", "expected"),
    [
        (V4, "x86_64", "x86-64-v4"),
        (V3, "x86_64", "x86-64-v3"),
        (V4 - {"movbe"}, "x86_64", "x86-64-v2"),  # a level needs all of those below it
        (set(), "x86_64", "x86-64"),
        ({"asimd", "asimddp", "i8mm"}, "aarch64", "aarch64-asimddp-i8mm"),
        (set(), "riscv64", "riscv64"),
    ],
)
def test_cpu_class(flags: set[str], kind: str, expected: str) -> None:
    assert machine.cpu_class(frozenset(flags), kind) == expected


def test_describe() -> None:
    record = machine.describe()
    assert record.cpu
    assert 1 <= record.cores <= (os.cpu_count() or 1)
    assert 0 < record.memory_bytes <= psutil.virtual_memory().total
    assert {"numpy", "pydantic"} & set(record.versions) == {"numpy"}


@pytest.mark.parametrize(
    ("membership", "controls", "cores", "memory"),
    [
        ("0::/", {"memory.max": "1073741824", "cpu.max": "100000 100000"}, 1, 1 << 30),
        ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, None, None),
        ("0::/a/b", {"a/memory.max": "1073741824", "a/b/memory.max": "max"}, None, 1 << 30),
        ("4:memory:/job\n3:cpu,cpuacct:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "1073741824"}, None, 1 << 30),
        ("4:memory:/not/mounted/here", {"memory/memory.limit_in_bytes": "1073741824"}, None, 1 << 30),
        ("", {"memory.max": "1073741824"}, None, None),
    ],
)
def test_cgroups_limits_are_honoured(
    membership: str,
    controls: dict[str, str],
    cores: int | None,
    memory: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of both versions, the own group's and those above it."""
    (tmp_path / "membership").write_text(membership)
    for name, value in controls.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(value)
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "tree")
    assert machine.cores() == (cores or len(os.sched_getaffinity(0)))
    assert machine.memory_bytes() == (memory or psutil.virtual_memory().total)


def test_bandwidth_is_that_of_memory() -> None:
    """Between a slow single channel and any machine of today; a first touch of pages would read below."""
    assert 1e9 < machine.bandwidth(seconds=0.2) < 2e12


def test_instruction_sets_are_in_cpuinfo() -> None:
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo on this platform")
    text = Path("/proc/cpuinfo").read_text()
    assert ("AVX2" in machine.instruction_sets()) == (" avx2 " in text)


def test_throughput_is_that_of_matrix_products() -> None:
    assert 1e9 < machine.throughput(seconds=0.2) < 1e14
