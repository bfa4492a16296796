"""The guard before every encoder: NaN and infinity."""

import numpy as np

from quantkit.kernels.jit import kernel

_INFINITY = np.int32(0x7F800000)


@kernel
def first_nonfinite_row(rows):
    """Index of the first row of float32 rows (n, width) that holds NaN or infinity; -1 if none. Reads at memory
    speed.
    """
    bits = rows.view(np.int32)
    for row in range(rows.shape[0]):
        greatest = np.int32(0)
        for i in range(rows.shape[1]):
            greatest = max(greatest, np.int32(bits[row, i] & 0x7FFFFFFF))
        if greatest >= _INFINITY:
            return row
    return -1
