"""Sound files of every type that gguf-py writes pass; each fault of a file is found and named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from quantkit.checks.integrity import check, tolerance
from quantkit.values import F32, Row

WIDTH, ROWS = 256, 96


def matrix(seed: int) -> F32:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((ROWS, WIDTH)) * rng.gamma(2.0, 0.5, (ROWS, 1))).astype(np.float32)


SOURCE = {"a.weight": matrix(1), "b.weight": matrix(2)}


def rows(kind: Kind) -> tuple[Row, ...]:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    nbytes = ROWS * WIDTH // block * size
    return tuple(Row(name, name, (ROWS, WIDTH), "F32", kind.name, kind.name, "", nbytes) for name in SOURCE)


def source_rows(row: Row, start: int, stop: int) -> F32:
    return SOURCE[row.name][start:stop]


def write(path: Path, kind: Kind, tensors: dict[str, F32], damage: Callable[[np.ndarray], None] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, array in tensors.items():
        data = gguf.quants.quantize(array, kind)
        if damage is not None and name == "b.weight":
            damage(data)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_a_sound_file_passes_with_its_errors(tmp_path: Path, name: str) -> None:
    kind = Kind[name]
    result, errors = check([write(tmp_path / "m.gguf", kind, SOURCE)], rows(kind), source_rows)
    assert result.verdict == "pass", result.summary
    assert result.engine.startswith("gguf-py")
    for tensor, array in SOURCE.items():
        decoded = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
        expected = math.sqrt(np.square(array - decoded).sum() / np.square(array).sum())
        assert errors[tensor] == pytest.approx(expected, rel=1e-4)
        assert errors[tensor] <= tolerance(name) / 2


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K", "IQ4_XS", "TQ1_0"])
def test_no_type_allows_a_lost_tensor(name: str) -> None:
    assert 0 < tolerance(name) < 1


def zeroed(data: np.ndarray) -> None:
    data[:] = 0


def nan_scale(data: np.ndarray) -> None:
    data[70, 34:36] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)


def shuffled(data: np.ndarray) -> None:
    data[:] = data[::-1].copy()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (zeroed, r"b\.weight: relative error 1, Q8_0 allows"),
        (nan_scale, r"b\.weight: row 70 decodes to NaN"),
        (shuffled, r"b\.weight: relative error 1\.\d+, Q8_0 allows"),
    ],
)
def test_damaged_values_are_found(tmp_path: Path, damage: Callable[[np.ndarray], None], fault: str) -> None:
    path = write(tmp_path / "m.gguf", Kind.Q8_0, SOURCE, damage)
    result, errors = check([path], rows(Kind.Q8_0), source_rows)
    assert result.verdict == "fail"
    assert result.values["faults"] == 1
    assert errors["a.weight"] < 0.01
    assert re.search(fault, result.summary), result.summary


def test_missing_added_and_mistyped_tensors_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", Kind.Q8_0, {"a.weight": SOURCE["a.weight"], "c.weight": SOURCE["b.weight"]})
    result, _ = check([path], rows(Kind.Q4_0), source_rows)
    assert result.verdict == "fail"
    for fault in (
        "c.weight: in the file, not planned",
        "b.weight: planned, not in the file",
        "type Q8_0, planned Q4_0",
    ):
        assert fault in result.summary
    planned = [replace(row, shape=(WIDTH, ROWS)) for row in rows(Kind.Q8_0)]
    assert "a.weight: shape (96, 256), planned (256, 96)" in check([path], planned, source_rows)[0].summary


@pytest.mark.parametrize("size", [0, 40, 20_000])
def test_a_truncated_file_is_a_fault_and_not_an_exception(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "m.gguf", Kind.Q8_0, SOURCE)
    with path.open("r+b") as file:
        file.truncate(size)
    result, _ = check([path], rows(Kind.Q8_0), source_rows)
    assert result.verdict == "fail"
    assert "gguf-py does not read the file" in result.summary


def test_a_tensor_without_source_needs_only_to_be_finite(tmp_path: Path) -> None:
    planned = [replace(row, source=None) for row in rows(Kind.Q8_0)]
    result, errors = check([write(tmp_path / "m.gguf", Kind.Q8_0, SOURCE, zeroed)], planned, source_rows)
    assert (result.verdict, errors) == ("pass", {})
