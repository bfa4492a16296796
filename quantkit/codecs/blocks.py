"""What the GGUF codecs share: rows and importance checked and cut into blocks, bytes and halves seen as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import WeightError
from quantkit.kernels.finite import first_row_reaching
from quantkit.values import F32, U8

F64 = NDArray[np.float64]

FLOOR = 1e-6  # of the mean importance: a column that calibration hardly saw keeps its shape
GROUP = 32  # columns that lend each other their importance
HALF_MAX = 65504.0


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


def check_range(name: str, rows: F32, reach: float) -> None:
    """WeightError, naming the row, where a magnitude exceeds what the greatest half times `reach` stands for."""
    limit = HALF_MAX * reach
    row = first_row_reaching(rows, np.nextafter(np.float32(limit), np.float32(np.inf)))
    if row >= 0:
        worst = float(np.abs(rows[row]).max())
        raise WeightError(
            f"row {row} of them holds {worst:g}, {name} ends at {limit:g}, for its scales are half precision: BF16 and F32 "
            "hold it"
        )


def check_importance(name: str, importance: F32 | None, width: int) -> F32:
    """Columns' E[x^2] (width,) relative to its mean and floored at FLOOR; of size 0 when None or zero throughout.

    importance: (width,), or (2, width) with E[x] below. A zero is a column that calibration never reached: it weighs as
    much as the mean of the others among its 32, and where most of the 32 are zero, all of these weigh the same.
    ValueError unless of such a shape, finite and E[x^2] >= 0.
    """
    if importance is None:
        return np.empty(0, np.float32)
    if importance.shape not in ((width,), (2, width)):
        raise ValueError(
            f"{name}: importance must have shape ({width},), one E[x^2] per column, or (2, {width}), E[x] below; "
            f"got {importance.shape}"
        )
    squares = np.atleast_2d(importance)[0].astype(np.float64)
    if not np.isfinite(importance).all() or (squares < 0).any():
        raise ValueError(f"{name}: importance must be finite and >= 0, got {squares.min()} to {squares.max()}")
    mean = squares.mean()
    if mean == 0:
        return np.empty(0, np.float32)
    relative: F32 = np.maximum(_fill(squares / mean), FLOOR).astype(np.float32)
    return relative


def _fill(squares: F64) -> F64:
    """Zeros replaced by the mean of the others among their 32; all 32 by 1, the row's mean, where most are zero."""
    if squares.all() or squares.size % GROUP:
        return squares
    groups = squares.reshape(-1, GROUP)
    seen = np.count_nonzero(groups, axis=1)[:, None]
    means = groups.sum(axis=1, keepdims=True) / np.maximum(seen, 1)
    filled = np.where(groups == 0, means, groups)
    return np.where(2 * seen < GROUP, 1.0, filled).reshape(-1)


def cut(name: str, rows: F32, importance: F32 | None, *shape: int, reach: float = np.inf) -> tuple[F32, F32]:
    """Rows as (n, blocks, *shape) and importance as (blocks, *shape), or (0, *shape) without.

    reach: the magnitude that the type stores with a scale of one; see `check_range`.
    """
    rows = check_rows(name, rows, int(np.prod(shape)))
    weights = check_importance(name, importance, rows.shape[1])
    if reach < np.inf:
        check_range(name, rows, reach)
    blocks = rows.shape[1] // int(np.prod(shape))
    return rows.reshape(rows.shape[0], blocks, *shape), weights.reshape(blocks if weights.size else 0, *shape)


def means(importance: F32 | None, weights: F32) -> tuple[F32, F32]:
    """What kernels.feedback wants of columns' means, both shaped as the `weights` that `cut` gave: the means in the unit of
    the weights' roots, and the gains mean / weight / (1 + sum of mean^2 / weight from this block on). Of 0 blocks when
    `importance` has no row of E[x].

    The gains solve, for one mean error owed, min sum of weight * shift^2 + (owed - sum of mean * shift)^2 over the
    columns that are still to be rounded. float64, in a fixed order.
    """
    none = np.empty((0, *weights.shape[1:]), np.float32)
    if importance is None or importance.ndim == 1 or weights.size == 0:
        return none, none
    scale = np.sqrt(importance[0].mean(dtype=np.float64))
    square = weights.reshape(-1).astype(np.float64)
    mean = np.clip(importance[1].astype(np.float64) / scale, -np.sqrt(square), np.sqrt(square)).reshape(-1, weights.shape[-1])
    ratio = mean / square.reshape(mean.shape)
    left = np.cumsum((mean * ratio).sum(axis=1)[::-1])[::-1]
    gains = ratio / (1 + left[:, None])
    return mean.astype(np.float32).reshape(weights.shape), gains.astype(np.float32).reshape(weights.shape)


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


def halves(blocks: U8, at: int) -> F32:
    """The half at byte `at` of every block, as float32 (n, blocks)."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)
