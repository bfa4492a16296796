"""The file as it was written: what is in it, and how far from its source. Read by gguf-py, not by our own codecs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.codecs import gguf_kv
from quantkit.codecs.gguf_kv import KeyValue
from quantkit.errors import InputError
from quantkit.values import F32, CheckResult, Progress, Row

SourceRows = Callable[[Row, int, int], F32]
"""source_rows(row, start, stop): the source's rows, (stop - start, width), ordered as in the artefact; axes merged."""

_SLAB = 1 << 19  # weights decoded at once: 2 MB as float32, and gguf-py needs several copies
_UNQUANTISED = {"F64": 1e-12, "F32": 1e-6, "F16": 2e-3, "BF16": 8e-3}  # four times the rounding of a weight


def check(
    paths: Sequence[Path],
    rows: Sequence[Row],
    source_rows: SourceRows,
    metadata: Sequence[Sequence[KeyValue]] = (),
    *,
    progress: Progress | None = None,
) -> tuple[CheckResult, dict[str, float]]:
    """Whether the files hold the planned `rows` and nothing else, finite and near the source; relative errors by tensor.

    paths: of one GGUF, all parts of a split one; metadata: the pairs that each of them is to say, where that is known. The
    relative error is sqrt(sum (w - decoded)^2 / sum w^2), for rows that have a source. Never raises for a fault of the file:
    every fault is in the result.
    """
    faults: list[str] = []
    errors: dict[str, float] = {}
    found: dict[str, Any] = {}
    from gguf import GGUFReader

    try:
        found = {tensor.name: tensor for path in paths for tensor in GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError, OSError) as reason:
        faults.append(f"gguf-py does not read the file: {reason}")
    else:
        planned = {row.name for row in rows}
        faults += [f"{name}: in the file, not planned" for name in found if name not in planned]
        faults += [f"{row.name}: planned, not in the file" for row in rows if row.name not in found]
        for path, pairs in zip(paths, metadata, strict=bool(metadata)):
            faults += said(path, pairs)
    present = [row for row in rows if row.name in found]
    for index, row in enumerate(present):
        fault = _declared(row, found[row.name])
        if fault is None:
            fault, error = _decoded(row, found[row.name], source_rows)
            errors.update({row.name: error} if error is not None else {})
        faults += [f"{row.name}: {fault}"] if fault is not None else []
        if progress is not None:
            progress("integrity", index + 1, len(present))
    return _result(len(rows), sum(map(len, metadata)), faults, errors), errors


def said(path: Path, pairs: Sequence[KeyValue]) -> list[str]:
    """What the file's metadata says otherwise than planned: the template, the vocabulary, every parameter of the graph."""
    try:
        found = {pair.key: pair for pair in gguf_kv.read(path).pairs}
    except InputError as error:
        return [str(error)]
    planned = {pair.key: pair for pair in pairs}
    faults = [f"{key}: in the metadata, not planned" for key in found if key not in planned]
    faults += [f"{key}: planned, not in the metadata" for key in planned if key not in found]
    both = ((found[key], pair) for key, pair in planned.items() if key in found)
    return faults + [
        f"{one.key}: {_shown(one)}, planned {_shown(other)}" for one, other in both if _plain(one) != _plain(other)
    ]


def _plain(pair: KeyValue) -> tuple[object, ...]:
    """Kind and value, comparable: a number as the file's own type holds it."""
    value = pair.value
    if "FLOAT32" in (pair.kind, pair.item):
        value = np.asarray(value, np.float32).tolist()
    return pair.kind, pair.item, list(value) if pair.kind == "ARRAY" else value


def _shown(pair: KeyValue) -> str:
    if pair.kind == "ARRAY":
        return f"{len(pair.value)} of {pair.item}, sha256 {hashlib.sha256(repr(_plain(pair)).encode()).hexdigest()[:8]}"
    text = repr(pair.value)
    return text if len(text) <= 40 else f"{text[:20]} ... {text[-12:]}"


def _declared(row: Row, tensor: Any) -> str | None:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if shape != tuple(row.shape):
        return f"shape {shape}, planned {tuple(row.shape)}"
    if tensor.tensor_type.name != row.type:
        return f"type {tensor.tensor_type.name}, planned {row.type}"
    if int(tensor.n_bytes) != row.nbytes:
        return f"{int(tensor.n_bytes)} bytes, planned {row.nbytes}"
    return None


def _decoded(row: Row, tensor: Any, source_rows: SourceRows) -> tuple[str | None, float | None]:
    """A fault of the values, if any, and the relative error."""
    from gguf.quants import dequantize

    data, width = tensor.data.reshape(-1, tensor.data.shape[-1]), row.shape[-1]
    step = max(1, _SLAB // width)
    energy = difference = 0.0
    for start in range(0, len(data), step):
        stop = min(start + step, len(data))
        with np.errstate(all="ignore"):  # a broken scale overflows here and is told below
            decoded = dequantize(data[start:stop], tensor.tensor_type).astype(np.float32, copy=False)
        finite = np.isfinite(decoded).all(1)
        if not finite.all():
            return f"row {start + int(finite.argmin())} decodes to NaN or infinity", None
        if row.source is not None:
            source = source_rows(row, start, stop)
            energy += float(np.square(source, dtype=np.float64).sum())
            difference += float(np.square(source - decoded, dtype=np.float64).sum())
    if row.source is None:
        return None, None
    error = math.sqrt(difference / energy) if energy else math.sqrt(difference)
    most = tolerance(row.type)
    return (f"relative error {error:.4g}, {row.type} allows {most:.4g}" if error > most else None), error


def tolerance(kind: str) -> float:
    """The relative error beyond which a tensor is broken, not merely quantised.

    A block of 32 spanning -2^(b-1) .. 2^(b-1) steps errs by at most sqrt(1/12) of a step per weight on average, and its
    energy is at least that of its greatest weight: sqrt(32 / 12) / 2^(b-1) even for the worst of blocks. Twice that
    leaves room for scales that are themselves quantised and for importance-weighted codes; Gaussian weights stay four
    times below. A tensor of zeros errs by 1, one in the wrong row order by about 1.4; so never above 0.8.
    """
    if kind in _UNQUANTISED:
        return _UNQUANTISED[kind]
    if kind.endswith("S"):  # smoothed for its input: columns of small activations are coarse on purpose
        return 0.3
    bits = int(re.findall(r"\d", kind)[0])
    return float(min(0.8, 2 * math.sqrt(32 / 12) / 2 ** (bits - 1)))


def _result(planned: int, pairs: int, faults: list[str], errors: dict[str, float]) -> CheckResult:
    worst = max(errors, key=errors.__getitem__, default="")
    good = f"{planned} tensors{f' and {pairs} pairs of metadata' if pairs else ''} as planned, all finite"
    bad = f"{len(faults)} faults: {'; '.join(faults[:3])}{' ...' if len(faults) > 3 else ''}"
    worst_error = f"; greatest relative error {errors[worst]:.4g} in {worst}" if worst else ""
    return CheckResult(
        check="integrity",
        verdict="fail" if faults else "pass",
        summary=bad if faults else good + worst_error,
        values={
            "tensors": planned,
            "pairs": pairs,
            "faults": len(faults),
            "worst_tensor": worst,
            "worst_relative_error": errors.get(worst, 0.0),
        },
        limits={},
        engine=f"gguf-py {version('gguf')}",
    )
