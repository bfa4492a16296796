"""BF16: the upper half of a float32."""

import numpy as np

from quantkit.kernels.jit import kernel


@kernel
def encode(rows, out):
    """Nearest bfloat16 (ties to even) of float32 rows (n, width), as uint16 bits; beyond the range the largest,
    never infinity.
    """
    bits = rows.view(np.int32)
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            magnitude = np.int32(bits[row, i] & 0x7FFFFFFF)
            rounded = np.int32(np.int32(magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16)
            out[row, i] = np.uint16(min(rounded, np.int32(0x7F7F)) | ((bits[row, i] >> 16) & 0x8000))
