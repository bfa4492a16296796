"""What the GGUF codecs share: rows and importance checked and cut into blocks, bytes and halves seen as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import WeightError
from quantkit.kernels import grids
from quantkit.kernels.finite import first_row_reaching
from quantkit.values import F32, U8

HALF = 65504.0  # the greatest half
FLOOR = 1e-6  # of the mean importance: a column that calibration hardly saw keeps its shape
GROUP = 32  # columns that lend each other their importance
SPARED = 0.5  # of the squared mean is left out of a column's cost where the codes are balanced; measured, see LOG.md


def check_rows(name: str, rows: F32, block: int) -> F32:
    """Rows as the kernels take them. ValueError unless float32, two-dimensional, contiguous, of whole blocks."""
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.flags.c_contiguous:
        raise ValueError(
            f"{name}: rows must be a C-contiguous float32 array (n, width), got {rows.dtype} {rows.shape}"
            f"{'' if rows.flags.c_contiguous else ', not contiguous'}; use numpy.ascontiguousarray(rows, numpy.float32)"
        )
    if rows.shape[1] % block:
        raise ValueError(
            f"{name}: a width of {rows.shape[1]} is not a multiple of its block of {block}; choose a type with a smaller block"
        )
    return rows if rows.flags.writeable else rows.copy()  # numba would compile every kernel again for read-only arrays


def check_importance(name: str, importance: F32 | None, mean: F32 | None, width: int) -> tuple[F32, F32]:
    """What errors in each column cost, and the columns' means, both (width,) and relative to the mean importance; of size 0
    where nothing is known (None, or zero throughout).

    A zero is a column that calibration never reached: it costs as much as the mean of the others among its 32, and where most
    of the 32 are zero, all of these cost the same. With means part of the cost is `kernels.balance`'s to take care of: E[x^2]
    - SPARED * E[x]^2 is left. Floored at FLOOR.
    ValueError unless (width,), finite and importance >= 0.
    """
    nothing = np.empty(0, np.float32)
    if importance is None:
        if mean is not None:
            raise ValueError(f"{name}: a mean without importance; give both")
        return nothing, nothing
    for what, values in (("importance", importance), ("mean", mean)):
        if values is not None and values.shape != (width,):
            raise ValueError(f"{name}: {what} must have shape ({width},), one per column, got {values.shape}")
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name}: {what} must be finite, got {values.min()} to {values.max()}")
    if (importance < 0).any():
        raise ValueError(f"{name}: importance must be finite and >= 0, got {importance.min()} to {importance.max()}")
    scale = importance.mean(dtype=np.float64)
    if scale == 0:
        return nothing, nothing
    squares = _fill(importance / scale)
    means = nothing if mean is None else mean / np.sqrt(scale)
    spent = 0.0 if mean is None else SPARED * np.square(means)
    return np.maximum(squares - spent, FLOOR).astype(np.float32), means.astype(np.float32)


def _fill(squares: NDArray[np.floating]) -> NDArray[np.floating]:
    """Zeros replaced by the mean of the others among their 32; all 32 by 1, the row's mean, where most are zero."""
    if squares.all() or squares.size % GROUP:
        return squares
    groups = squares.reshape(-1, GROUP)
    seen = np.count_nonzero(groups, axis=1)[:, None]
    filled = np.where(groups == 0, groups.sum(axis=1, keepdims=True) / np.maximum(seen, 1), groups)
    return np.where(2 * seen < GROUP, 1.0, filled).reshape(-1)


def check_range(name: str, rows: F32, limit: float) -> None:
    """WeightError where a weight lies beyond what the type's scales can say."""
    row = first_row_reaching(rows, np.float32(limit * 1.0001))
    if row >= 0:
        worst = float(np.abs(rows[row]).max())
        raise WeightError(f"row {row} of them holds {worst:g}, {name} ends at {limit:g}: BF16 and F32 hold it")


def cut(name: str, rows: F32, importance: F32 | None, mean: F32 | None, *shape: int, steps: float) -> tuple[F32, F32, F32]:
    """Rows as (n, blocks, *shape), costs and means as (blocks, *shape), or (0, *shape) without.

    steps: the type's greatest weight over its half-precision scale or offset; larger weights are a WeightError.
    """
    rows = check_rows(name, rows, int(np.prod(shape)))
    check_range(name, rows, steps * HALF)
    blocks = rows.shape[1] // int(np.prod(shape))
    costs, means = (
        values.reshape(blocks if values.size else 0, *shape)
        for values in check_importance(name, importance, mean, rows.shape[1])
    )
    return rows.reshape(rows.shape[0], blocks, *shape), costs, means


def side_by_side(values: F32) -> F32:
    """(super-blocks, 256) with the sixteen blocks of 16 of each side by side: element i of block j at 16 * i + j."""
    return np.ascontiguousarray(values.reshape(-1, 16, 16).transpose(0, 2, 1)).reshape(values.shape)


def as_bytes(encoded: np.ndarray[tuple[int, ...], np.dtype[np.uint16]] | U8) -> U8:
    """Encoded blocks (n, blocks, units) as uint8 (n, row bytes)."""
    n, blocks, units = encoded.shape
    return encoded.view(np.uint8).reshape(n, blocks * units * encoded.itemsize)


def as_rows(decoded: F32) -> F32:
    """Decoded blocks (n, blocks, ...) as rows (n, width)."""
    return decoded.reshape(decoded.shape[0], int(np.prod(decoded.shape[1:])))


def as_blocks(name: str, data: U8, block_bytes: int) -> U8:
    """Encoded rows (n, row bytes) as contiguous uint8 (n, blocks, block_bytes). ValueError if that does not divide."""
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % block_bytes:
        raise ValueError(
            f"{name}: expected uint8 rows of a multiple of {block_bytes} bytes, got {data.dtype} {data.shape}; "
            "the tensor's type or shape is not what its bytes are"
        )
    blocks = data.reshape(data.shape[0], data.shape[1] // block_bytes, block_bytes)
    return np.require(blocks, requirements=["C", "W"])


def on_grid(rows: F32, low: int, high: int) -> tuple[F32, NDArray[np.int16]] | None:
    """Scales (n, blocks, 1), each a float16, and codes (n, blocks, 32) within low..high whose products are exactly `rows`, as
    those of a dequantised checkpoint are; None where there are none."""
    blocks = np.ascontiguousarray(rows, np.float32).reshape(len(rows), -1, grids.BLOCK)
    scales = np.empty(blocks.shape[:2], np.float32)
    if not grids.find_scales(blocks, low, high, scales):
        return None
    codes = np.rint(np.divide(blocks, scales[..., None], out=np.zeros_like(blocks), where=scales[..., None] > 0))
    exact = (codes * scales[..., None] == blocks).all()
    return (scales[..., None], codes.astype(np.int16)) if exact else None


def halves(blocks: U8, at: int) -> F32:
    """The half at byte `at` of every block, as float32 (n, blocks)."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)
