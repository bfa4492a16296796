"""A codec over many rows on several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantkit.values import F32, U8, Codec

SLAB = (
    1 << 19
)  # weights: 2 MB of float32, enough that threads seldom meet in Python, and the same cuts for any number of threads


def encode_rows(codec: Codec, rows: F32, importance: F32 | None = None, threads: int = 1, out: U8 | None = None) -> U8:
    """Encode float32 rows (n, width) to uint8 (n, row bytes), into `out` if given.

    The bytes do not depend on `threads`: rows stand alone.
    """
    encoded = np.empty((rows.shape[0], codec.row_bytes(rows.shape[1])), np.uint8) if out is None else out
    height = max(1, SLAB // max(1, rows.shape[1]))

    def encode(start: int) -> None:
        encoded[start : start + height] = codec.encode(rows[start : start + height], importance)

    starts = range(0, rows.shape[0], height)
    if threads == 1 or len(starts) < 2:
        for start in starts:
            encode(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(encode, starts))
    return encoded
