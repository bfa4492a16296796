"""Bytes of the block types back to float32. Scales come as float32 arrays, read from the bytes by numpy."""

import numpy as np

from quantkit.kernels.jit import kernel


@kernel
def nibbles(data, scales, offsets, fifths, out):
    """Q4_0, Q4_1, Q5_0, Q5_1: out = scale * code + offset, where a signed type's offset is -8 or -16 times its scale.

    data: uint8 (n, blocks, bytes) from the fifth bits on (4 bytes, if `fifths`), then 16 of nibbles; scales,
    offsets: float32 (n, blocks); out: float32 (n, blocks, 2, 16).
    """
    first = 4 if fifths else 0
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            source = data[row, block]
            scale, offset = scales[row, block], offsets[row, block]
            high = np.uint32(0)
            for i in range(first):
                high |= np.uint32(source[i]) << np.uint32(8 * i)
            for i in range(16):
                low_code = (source[first + i] & 15) | ((high >> np.uint32(i)) & 1) << 4
                high_code = (source[first + i] >> 4) | ((high >> np.uint32(16 + i)) & 1) << 4
                out[row, block, 0, i] = scale * np.float32(low_code) + offset
                out[row, block, 1, i] = scale * np.float32(high_code) + offset


@kernel
def signed_bytes(data, scales, out):
    """Q8_0: int8 data (n, blocks, 32), float32 scales (n, blocks), to float32 out (n, blocks, 32)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for i in range(data.shape[2]):
                out[row, block, i] = scales[row, block] * np.float32(data[row, block, i])


@kernel
def affine_superblock(data, steps, minimum_steps, out):
    """Q4_K and Q5_K: uint8 data (n, blocks, 140 or 172) after the two halves, which come as float32 (n, blocks);
    float32 out (n, blocks, 8, 32).
    """
    fifths = data.shape[2] > 140
    first = 44 if fifths else 12
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            source = data[row, block]
            for j in range(8):
                if j < 4:
                    code, minimum_code = source[j] & 63, source[j + 4] & 63
                else:
                    code = (source[j + 4] & 15) | ((source[j - 4] >> 6) << 4)
                    minimum_code = (source[j + 4] >> 4) | ((source[j] >> 6) << 4)
                scale = steps[row, block] * np.float32(code)
                minimum = minimum_steps[row, block] * np.float32(minimum_code)
                for i in range(32):
                    quant = (source[first + 32 * (j // 2) + i] >> (4 * (j % 2))) & 15
                    if fifths:
                        quant |= ((source[12 + i] >> j) & 1) << 4
                    out[row, block, j, i] = scale * np.float32(quant) - minimum


@kernel
def symmetric_superblock(data, steps, out):
    """Q6_K: uint8 data (n, blocks, 210), float32 steps (n, blocks), to float32 out (n, blocks, 16, 16)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            source = data[row, block]
            for j in range(16):
                scale = steps[row, block] * np.float32(np.int8(source[192 + j]))
                side, part = j // 8, j // 2 % 4
                for i in range(16):
                    column = 16 * (j % 2) + i
                    low = (source[64 * side + 32 * (part % 2) + column] >> (4 * (part // 2))) & 15
                    high = (source[128 + 32 * side + column] >> (2 * part)) & 3
                    out[row, block, j, i] = scale * np.float32(np.int32(low | (high << 4)) - 32)


@kernel
def symmetric_superblock3(data, steps, out):
    """Q3_K: uint8 data (n, blocks, 110), float32 steps (n, blocks), to float32 out (n, blocks, 16, 16)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            source = data[row, block]
            for j in range(16):
                code = ((source[96 + j % 8] >> (4 * (j // 8))) & 15) | (((source[104 + j % 4] >> (2 * (j // 4))) & 3) << 4)
                scale = steps[row, block] * np.float32(np.int32(code) - 32)
                part = j // 2
                for i in range(16):
                    column = 16 * (j % 2) + i
                    low = (source[32 + 32 * (part // 4) + column] >> (2 * (part % 4))) & 3
                    third = (source[column] >> part) & 1
                    out[row, block, j, i] = scale * np.float32(np.int32(low | (third << 2)) - 4)


@kernel
def affine_superblock2(data, steps, minimum_steps, out):
    """Q2_K: uint8 data (n, blocks, 84), float32 steps and minimum steps (n, blocks), to float32 out (n, blocks, 16, 16)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            source = data[row, block]
            for j in range(16):
                scale = steps[row, block] * np.float32(source[j] & 15)
                minimum = minimum_steps[row, block] * np.float32(source[j] >> 4)
                part = j // 2
                for i in range(16):
                    quant = (source[16 + 32 * (part // 4) + 16 * (j % 2) + i] >> (2 * (part % 4))) & 3
                    out[row, block, j, i] = scale * np.float32(quant) - minimum


@kernel
def levels(data, steps, table, out):
    """IQ4_NL, IQ4_XS, MXFP4: uint8 data (n, blocks, 16) of nibbles, float32 steps (n, blocks), levels (16,), to float32 out (n,
    blocks, 2, 16).
    """
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for i in range(16):
                out[row, block, 0, i] = steps[row, block] * table[data[row, block, i] & 15]
                out[row, block, 1, i] = steps[row, block] * table[data[row, block, i] >> 4]


@kernel
def ternary_pairs(data, steps, out):
    """TQ2_0: uint8 data (n, blocks, 66), float32 steps (n, blocks), to float32 out (n, blocks, 2, 4, 32)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for side in range(2):
                for part in range(4):
                    for i in range(32):
                        code = np.int32(data[row, block, 32 * side + i] >> (2 * part)) & 3
                        out[row, block, side, part, i] = steps[row, block] * np.float32(code - 1)


@kernel
def ternary_digits(data, steps, out):
    """TQ1_0: uint8 data (n, blocks, 54), float32 steps (n, blocks), to float32 out (n, blocks, 256)."""
    for row in range(data.shape[0]):
        for block in range(data.shape[1]):
            for i in range(52):
                start, apart, count = (i, 32, 5) if i < 32 else (128 + i, 16, 5) if i < 48 else (192 + i, 4, 4)
                fraction = np.int32(data[row, block, i])
                for part in range(count):
                    digit = (fraction * 3) >> 8
                    fraction = (fraction * 3) & 255
                    out[row, block, start + apart * part] = steps[row, block] * np.float32(digit - 1)
