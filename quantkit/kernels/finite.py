"""The guard before every encoder: NaN and infinity."""

import numpy as np

from quantkit.kernels.jit import kernel

_INFINITY = np.float32(np.inf)


@kernel
def first_row_reaching(rows, limit):
    """Index of the first row of float32 rows (n, width) with a magnitude >= limit, or NaN; -1 if none. At memory
    speed.
    """
    bits = rows.view(np.int32)
    bound = np.float32(limit).view(np.int32)
    for row in range(rows.shape[0]):
        greatest = np.int32(0)
        for i in range(rows.shape[1]):
            greatest = max(greatest, np.int32(bits[row, i] & 0x7FFFFFFF))
        if greatest >= bound:
            return row
    return -1


@kernel
def first_nonfinite_row(rows):
    """Index of the first row of float32 rows (n, width) that holds NaN or infinity; -1 if none."""
    return first_row_reaching(rows, _INFINITY)
