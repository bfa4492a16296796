"""The codes inside a GGUF tensor's bytes: put there from outside, on scales that are there already.

In every type here a weight is offset + step * level of its code, alike for a group of columns; the levels are 0, 1, 2 ..., or
those of a codebook. What offset and step are is asked of the type's own decoder, with two codes throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.codecs.blocks import HALF
from quantkit.codecs.gguf import codecs
from quantkit.kernels import codebook
from quantkit.values import F32, U8

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Lattice:
    """What the codes of rows stand for: offsets + steps * levels[code]; offsets, steps: float32 (rows, groups)."""

    levels: F32
    group: int  # columns
    offsets: F32
    steps: F32


@dataclass(frozen=True, slots=True)
class _Layout:
    """put: writes codes, uint8 (n, block), into blocks, uint8 (n, block's bytes). levels: ascending."""

    levels: F32
    group: int
    put: Callable[[U8, U8], None]
    scales: tuple[int, ...]  # bytes at which d stands and, of the types that have it, dmin or m


def types() -> tuple[str, ...]:
    """The types whose codes can be chosen."""
    return tuple(_LAYOUTS)


def lattice(kind: str, data: U8) -> Lattice:
    """Of encoded rows, uint8 (n, row bytes)."""
    layout, codec = _LAYOUTS[kind], codecs()[kind]
    width = data.shape[1] // codec.block_bytes * codec.block
    first, second = (
        codec.decode(with_codes(kind, data, np.full((len(data), width), code, np.uint8)))[:, :: layout.group] for code in (0, 1)
    )
    steps = (second - first) / (layout.levels[1] - layout.levels[0])
    return Lattice(layout.levels, layout.group, first - steps * layout.levels[0], steps)


def with_codes(kind: str, data: U8, codes: U8) -> U8:
    """Encoded rows (n, row bytes) with other codes (n, width), their scales as they are."""
    layout, codec = _LAYOUTS[kind], codecs()[kind]
    found = data.copy()
    layout.put(found.reshape(-1, codec.block_bytes), codes.reshape(-1, codec.block))
    return found


def refit(kind: str, data: U8, aims: F32, root: F32) -> U8:
    """Blocks (n, block's bytes) with the super-scales d and dmin that leave least of |(aims - q) root|^2, their codes and
    sub-scales as they are; those that rounding to halves would make no better are kept.

    aims: float32 (n, block); root: (block, block). Runs in torch, on as many threads as it is set to.
    """
    layout, codec = _LAYOUTS[kind], codecs()[kind]
    scales, whole = [_halves(data, at) for at in layout.scales], codec.decode(data)
    parts = [whole]  # of which each follows one of the scales
    if len(scales) == 2:
        scaled = codec.decode(_with_halves(data, layout.scales[1:], [np.zeros_like(scales[1])]))
        parts = [scaled, whole - scaled]
    left = _product(aims - whole, root)
    changes = _least_squares([_product(part, root) for part in parts], left)
    changed = [_scaled(scale, 1 + change) for scale, change in zip(scales, changes, strict=True)]
    found = _with_halves(data, layout.scales, changed)
    before, after = (np.square(each).sum(1) for each in (left, _product(aims - codec.decode(found), root)))
    better: U8 = np.where((after < before)[:, None], found, data)
    return better


def _product(rows: F32, matrix: F32) -> F32:
    import torch

    found: F32 = torch.mm(torch.from_numpy(rows), torch.from_numpy(matrix)).numpy()
    return found


def _least_squares(parts: Sequence[F32], aim: F32) -> Sequence[NDArray[np.float64]]:
    """Of one part or two, (n, width) each, how much of it there is in `aim`, row by row: (n,); none of what is nothing."""
    right = [_dot(part, aim) for part in parts]
    if len(parts) == 1:
        return [right[0] / np.maximum(_dot(parts[0], parts[0]), _TINY)]
    (one, other), between = (np.maximum(_dot(part, part), _TINY) for part in parts), _dot(*parts)
    determinant = np.maximum(one * other - between * between, 1e-6 * one * other)
    return [(right[0] * other - right[1] * between) / determinant, (right[1] * one - right[0] * between) / determinant]


def _dot(left: F32, right: F32) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("nw,nw->n", left, right, dtype=np.float64)
    return found


def _scaled(scale: F32, factor: NDArray[np.float64]) -> F32:
    """A scale times a factor where a half holds that."""
    found = scale * factor.astype(np.float32)
    kept: F32 = np.where(np.abs(found) <= HALF, found, scale)
    return kept


def _halves(data: U8, at: int) -> F32:
    return np.ascontiguousarray(data[:, at : at + 2]).view(np.float16)[:, 0].astype(np.float32)


def _with_halves(data: U8, places: Sequence[int], values: Sequence[NDArray[Any]]) -> U8:
    found = data.copy()
    for at, scale in zip(places, values, strict=True):
        found[:, at : at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
    return found


def _nibbles(at: int) -> Callable[[U8, U8], None]:
    """Q4_0, Q4_1: a byte holds code i below code 16 + i."""

    def put(blocks: U8, codes: U8) -> None:
        blocks[:, at : at + 16] = codes[:, :16] | codes[:, 16:] << 4

    return put


def _fifths(at: int) -> Callable[[U8, U8], None]:
    """Q5_0, Q5_1: the same after four bytes of fifth bits."""

    def put(blocks: U8, codes: U8) -> None:
        blocks[:, at : at + 4] = np.packbits(codes >> 4, axis=1, bitorder="little")
        blocks[:, at + 4 : at + 20] = codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4

    return put


def _bytes(blocks: U8, codes: U8) -> None:
    """Q8_0: signed bytes, of which code 0 is the least."""
    blocks[:, 2:34] = codes ^ 128


def _q2_k(blocks: U8, codes: U8) -> None:
    blocks[:, 16:80] = _pairs(codes).reshape(-1, 64)


def _q3_k(blocks: U8, codes: U8) -> None:
    parts = codes.reshape(-1, 8, 32) >> 2
    blocks[:, :32] = (parts << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    blocks[:, 32:96] = _pairs(np.bitwise_and(codes, np.uint8(3))).reshape(-1, 64)


def _q4_k(blocks: U8, codes: U8) -> None:
    pairs = codes.reshape(-1, 4, 2, 32)
    blocks[:, 16:144] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _q5_k(blocks: U8, codes: U8) -> None:
    pairs, fifths = codes.reshape(-1, 4, 2, 32) & 15, codes.reshape(-1, 8, 32) >> 4
    blocks[:, 16:48] = (fifths << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    blocks[:, 48:176] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _q6_k(blocks: U8, codes: U8) -> None:
    parts = codes.reshape(-1, 2, 4, 32)
    low = parts & 15
    blocks[:, :128] = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    blocks[:, 128:192] = _pairs(np.right_shift(codes, np.uint8(4))).reshape(-1, 64)


def _iq4_xs(blocks: U8, codes: U8) -> None:
    parts = codes.reshape(-1, 8, 2, 16)
    blocks[:, 8:136] = (parts[:, :, 0] | parts[:, :, 1] << 4).reshape(-1, 128)


def _even(count: int) -> F32:
    return np.arange(count, dtype=np.float32)


def _pairs(codes: U8) -> U8:
    """Codes of 2 bits (n, 256) in bytes (n, 2, 32): of each half four parts of 32, the first lowest."""
    parts = codes.reshape(-1, 2, 4, 32)
    found: U8 = (parts << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(2, dtype=np.uint8)
    return found


_LAYOUTS: Mapping[str, _Layout] = {
    "Q4_0": _Layout(_even(16), 32, _nibbles(2), (0,)),
    "Q4_1": _Layout(_even(16), 32, _nibbles(4), (0, 2)),
    "Q5_0": _Layout(_even(32), 32, _fifths(2), (0,)),
    "Q5_1": _Layout(_even(32), 32, _fifths(4), (0, 2)),
    "Q8_0": _Layout(_even(256), 32, _bytes, (0,)),
    "Q2_K": _Layout(_even(4), 16, _q2_k, (80, 82)),
    "Q3_K": _Layout(_even(8), 16, _q3_k, (108,)),
    "Q4_K": _Layout(_even(16), 32, _q4_k, (0, 2)),
    "Q5_K": _Layout(_even(32), 32, _q5_k, (0, 2)),
    "Q6_K": _Layout(_even(64), 16, _q6_k, (208,)),
    "IQ4_NL": _Layout(codebook.IQ4, 32, _nibbles(2), (0,)),
    "IQ4_XS": _Layout(codebook.IQ4, 32, _iq4_xs, (0,)),
}
