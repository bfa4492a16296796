"""What the GGUF codecs share: rows and importance checked and cut into blocks, bytes and halves seen as arrays."""

from __future__ import annotations

import numpy as np

from quantkit.values import F32, U8

FLOOR = 1e-6  # of the mean importance: a column that calibration never saw keeps its shape


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


def check_importance(name: str, importance: F32 | None, width: int) -> F32:
    """Importance (width,) relative to its mean and floored at FLOOR; of size 0 when None or zero throughout.

    ValueError unless (width,), finite and >= 0.
    """
    if importance is None:
        return np.empty(0, np.float32)
    if importance.shape != (width,):
        raise ValueError(f"{name}: importance must have shape ({width},), one per column, got {importance.shape}")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError(f"{name}: importance must be finite and >= 0, got {importance.min()} to {importance.max()}")
    mean = importance.mean(dtype=np.float64)
    if mean == 0:
        return np.empty(0, np.float32)
    relative: F32 = np.maximum(importance / mean, FLOOR).astype(np.float32)
    return relative


def cut(name: str, rows: F32, importance: F32 | None, *shape: int) -> tuple[F32, F32]:
    """Rows as (n, blocks, *shape) and importance as (blocks, *shape), or (0, *shape) without."""
    rows = check_rows(name, rows, int(np.prod(shape)))
    weights = check_importance(name, importance, rows.shape[1])
    blocks = rows.shape[1] // int(np.prod(shape))
    return rows.reshape(rows.shape[0], blocks, *shape), weights.reshape(blocks if weights.size else 0, *shape)


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
