"""Codes of 32 weights to the bytes of Q4_0, Q4_1, Q5_0 and Q5_1, eight codes to a machine word (little-endian)."""

import numpy as np

from quantkit.kernels.jit import kernel

_NIBBLE_HIGH = np.uint64(4)
_ONES = np.uint64(0x0101010101010101)
_GATHER = np.uint64(0x0102040810204080)  # times eight bytes of 0 or 1: those bits in order, in the top byte


@kernel
def store_word(word, target, at):
    """A uint64 as four uint16."""
    for i in range(4):
        target[at + i] = np.uint16((word >> np.uint64(16 * i)) & np.uint64(0xFFFF))


@kernel
def fifth_bits(word):
    """Bit 4 of each of a word's eight bytes, as one byte, first lowest."""
    return (((word >> _NIBBLE_HIGH) & _ONES) * _GATHER) >> np.uint64(56)


@kernel
def store_codes(words, fifths, target, at):
    """32 byte-wide codes, given as four uint64, into uint16 target from `at`: four bytes of fifth bits if `fifths`,
    then 16 bytes of which byte i holds code i in its low and code 16 + i in its high nibble.
    """
    if fifths:
        target[at] = np.uint16(fifth_bits(words[0]) | (fifth_bits(words[1]) << np.uint64(8)))
        target[at + 1] = np.uint16(fifth_bits(words[2]) | (fifth_bits(words[3]) << np.uint64(8)))
        at += 2
    low = np.uint64(15) * _ONES
    store_word((words[0] & low) | ((words[2] & low) << _NIBBLE_HIGH), target, at)
    store_word((words[1] & low) | ((words[3] & low) << _NIBBLE_HIGH), target, at + 4)
