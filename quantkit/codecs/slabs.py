"""A codec over many rows on several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantkit.values import F32, U8, Codec

SLAB = (
    1 << 19
)  # weights: 2 MB of float32, enough that threads seldom meet in Python, and the same cuts for any number of threads


def encode_rows(codec: Codec, rows: F32, importance: F32 | None = None, threads: int = 1) -> U8:
    """Encode float32 rows (n, width) to uint8 (n, row bytes). The bytes do not depend on `threads`: rows stand
    alone.
    """
    height = max(1, SLAB // max(1, rows.shape[1]))
    starts = range(0, rows.shape[0], height)
    if threads == 1 or len(starts) < 2:
        return codec.encode(rows, importance)
    out = np.empty((rows.shape[0], codec.row_bytes(rows.shape[1])), np.uint8)

    def encode(start: int) -> None:
        out[start : start + height] = codec.encode(rows[start : start + height], importance)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(encode, starts))
    return out
