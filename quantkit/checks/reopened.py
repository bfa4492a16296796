"""A checkpoint as it was written: the planned tensors, the codes that were computed, and how far each is from its source."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quantkit.checks import integrity
from quantkit.values import F32, U8, CheckResult, Progress, Row, Weights

_SLAB = 1 << 22  # weights compared at once


def check(
    written: Weights,
    rows: Sequence[Row],
    source_rows: Callable[[Row, int, int], F32],
    codes: Callable[[str], U8],
    digests: Mapping[str, str],
    beside: Sequence[str] = (),
    *,
    progress: Progress | None = None,
) -> tuple[CheckResult, dict[str, float]]:
    """Whether the checkpoint holds the planned rows and nothing else, finite and near the source; relative errors by tensor.

    codes: a quantised row's codes, unpacked from the file; digests: sha256 of those that were computed. beside: what was found
    wrong with the documents that go with the weights.
    """
    faults = list(beside)
    planned = {row.name for row in rows}
    faults += [f"{name}: in the checkpoint, not planned" for name in sorted(written.infos.keys() - planned)]
    errors: dict[str, float] = {}
    for index, row in enumerate(rows):
        fault = "planned, not in the checkpoint" if row.name not in written.infos else None
        if fault is None and row.name in digests and hashlib.sha256(codes(row.name).tobytes()).hexdigest() != digests[row.name]:
            fault = "its codes are not those that were computed"
        if fault is None:
            fault, error = _compare(written, row, source_rows)
            errors |= {row.name: error} if error is not None else {}
        faults += [f"{row.name}: {fault}"] if fault else []
        if progress is not None:
            progress("integrity", index + 1, len(rows))
    worst = max(errors, key=errors.__getitem__, default="")
    good = f"{len(rows)} tensors as planned, all finite, {len(digests)} with the codes that were computed"
    bad = f"{len(faults)} faults: {'; '.join(faults[:3])}{' ...' if len(faults) > 3 else ''}"
    said = bad if faults else good + (f"; greatest relative error {errors[worst]:.4g} in {worst}" if worst else "")
    values: dict[str, float | int | str] = {
        "tensors": len(rows), "faults": len(faults), "worst_tensor": worst, "worst_relative_error": errors.get(worst, 0.0),
    }  # fmt: skip
    return CheckResult("integrity", "fail" if faults else "pass", said, values, {}, "quantkit"), errors


def _compare(written: Weights, row: Row, source_rows: Callable[[Row, int, int], F32]) -> tuple[str | None, float | None]:
    """A fault of the values, if any, and the relative error."""
    shape = written.infos[row.name].shape
    count, width = (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (shape[0], 1)
    step = max(1, _SLAB // width)
    energy = difference = 0.0
    for start in range(0, count, step):
        stop = min(start + step, count)
        found, wanted = written.read(row.name, start, stop), source_rows(row, start, stop)
        if not np.isfinite(found).all():
            return "NaN or infinity", None
        energy += float(np.square(wanted, dtype=np.float64).sum())
        difference += float(np.square(wanted - found, dtype=np.float64).sum())
    error = math.sqrt(difference / energy) if energy else math.sqrt(difference)
    most = integrity.tolerance(row.type)
    return (f"relative error {error:.4g}, {row.type} allows {most:.4g}" if error > most else None), error
