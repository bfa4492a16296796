"""Checkpoints that are quantised already, read as float32 slab by slab, never a whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.codecs import awq, compressed_tensors, fp8, gptq
from quantkit.errors import SourceError, WeightError
from quantkit.source.files import SLAB, TensorFiles
from quantkit.source.schemes import FLOAT8, Packed, Presented
from quantkit.values import F32, U8

_NUMPY = {"I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1"}


class QuantisedTensors:
    """Weights over the files of a quantised checkpoint. Reads are positional, so threads may share one."""

    def __init__(self, stored: TensorFiles, presented: Presented) -> None:
        self.infos = presented.infos
        self.files = stored.files
        self._packed = presented.packed
        self._stored = stored

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        packed = self._packed.get(name)
        if packed is None:
            return self._stored.read(name, start, stop)
        if packed.transposed:
            whole = self._rows(packed, self.infos[name].shape[::-1], 0, None).T
            return np.ascontiguousarray(whole[start:stop])
        return self._rows(packed, self.infos[name].shape, start, stop)

    def codes(self, name: str) -> U8:
        """The codes of a packed matrix, (out, in). Raises SourceError for a tensor that has none."""
        packed = self._packed.get(name)
        if packed is None or packed.kind == "scaled":
            raise SourceError(f"{name} is no matrix of packed codes")
        shape = self.infos[name].shape
        return self._unpacked(packed, shape[::-1] if packed.transposed else shape, 0, None)

    def _rows(self, packed: Packed, shape: tuple[int, ...], start: int, stop: int | None) -> F32:
        rows, width = shape
        first, last, _ = slice(start, stop).indices(rows)
        last = max(first, last)
        if packed.kind == "scaled":
            return self._scaled(packed, (rows, width), first, last)
        return self._grouped(packed, (rows, width), first, last)

    def _scaled(self, packed: Packed, shape: tuple[int, int], first: int, last: int) -> F32:
        dtype = self._stored.infos[packed.parts["codes"]].dtype
        raw = self._stored.stored(packed.parts["codes"], first, last)
        values = fp8.decode(raw, dtype) if dtype in FLOAT8 else raw.view(np.int8).astype(np.float32)
        if dtype in FLOAT8 and not (finite := np.isfinite(values).all(1)).all():
            row = int(finite.argmin())
            column = int(np.isfinite(values[row]).argmin())
            raise WeightError(
                f"{packed.parts['codes']}: row {first + row}, column {column} holds {dtype}'s code 0x{raw[row, column]:02x}, "
                f"which is {values[row, column]}; fetch the checkpoint again"
            )
        scales = self._stored.read(packed.parts["scales"])
        if "zeros" in packed.parts:
            zeros = self._integers(packed.parts["zeros"]).reshape(scales.shape).astype(np.float32)
            values -= self._spread(packed, zeros, shape, first, last)
        values *= self._spread(packed, scales, shape, first, last)
        return values

    def _spread(self, packed: Packed, grid: F32, shape: tuple[int, int], first: int, last: int) -> F32:
        """What a grid of scales or zeros gives every weight of rows [first, last)."""
        if "groups" not in packed.parts:
            return fp8.spread(grid, shape, packed.block, first, last)
        return grid[first:last][:, self._groups(packed, shape[1], grid.shape[1])]

    def _unpacked(self, packed: Packed, shape: tuple[int, ...], first: int, last: int | None) -> U8:
        """Codes of rows [first, last)."""
        last = shape[0] if last is None else last
        if packed.kind == "packed":
            stored = self._stored.stored(packed.parts["codes"], first, last).view("<i4")
            return np.ascontiguousarray(compressed_tensors.unpack_codes(stored, packed.bits, shape[1]))
        if packed.kind == "gptq":
            return gptq.unpack_codes(self._stored.columns(packed.parts["codes"], first, last).view("<i4"), packed.bits)
        step = awq.OUTPUTS
        words = self._stored.columns(packed.parts["codes"], first // step, -(-last // step)).view("<i4")
        return np.ascontiguousarray(awq.unpack(words)[first % step :][: last - first])

    def _grouped(self, packed: Packed, shape: tuple[int, int], first: int, last: int) -> F32:
        scales = self._stored.read(packed.parts["scales"])
        scales = scales.reshape(shape[0], -1)[first:last] if packed.kind == "packed" else scales[:, first:last].T
        zeros = self._zeros(packed, shape[0], first, last)
        zeros = np.full(scales.shape, 1 << (packed.bits - 1), np.int16) if zeros is None else zeros
        groups = self._groups(packed, shape[1], scales.shape[1])
        codes = self._unpacked(packed, shape, first, last)
        out = np.empty((last - first, shape[1]), np.float32)
        step = max(1, SLAB // shape[1])
        for begin in range(0, len(out), step):
            part = slice(begin, begin + step)
            out[part] = gptq.dequantise(codes[part], scales[part], zeros[part], groups)
        return out

    def _zeros(self, packed: Packed, rows: int, first: int, last: int) -> NDArray[np.int16] | None:
        """The zeros (last - first, groups) of rows [first, last), out of the words that hold them; None of symmetric codes."""
        if "zeros" not in packed.parts:
            return None
        stored = self._integers(packed.parts["zeros"])
        begin, end = first // 32, -(-last // 32)
        words = slice(begin * packed.bits, end * packed.bits)  # 32 zeros fill as many words as they have bits
        if packed.kind == "gptq":
            zeros = gptq.unpack_zeros(stored[:, words], packed.bits, packed.version)
        elif packed.kind == "awq":
            zeros = awq.unpack(stored[:, words]).astype(np.int16)
        else:
            held = min(32 * end, rows) - 32 * begin
            zeros = compressed_tensors.unpack_zeros(stored[words], packed.bits, held).astype(np.int16)
        return zeros[first - 32 * begin : last - 32 * begin]

    def _groups(self, packed: Packed, width: int, count: int) -> NDArray[np.intp]:
        """The group of every column. Raises SourceError for one that has no scale."""
        natural = np.arange(width, dtype=np.intp) // (packed.group if packed.group > 0 else -(-width // count))
        if "groups" not in packed.parts:
            return natural
        found = self._integers(packed.parts["groups"]).reshape(-1).astype(np.intp)
        if packed.kind in ("packed", "scaled") and len(found) == width and (found == -1).all():
            return natural  # compressed-tensors' mark of groups that nothing reordered
        if len(found) != width or found.min() < 0 or found.max() >= count:
            raise SourceError(
                f"{packed.parts['groups']} has {len(found)} groups from {found.min()} to {found.max()} for {width} columns and "
                f"{count} scales; fetch the checkpoint again"
            )
        return found

    def _integers(self, name: str) -> NDArray[Any]:
        info = self._stored.infos[name]
        return self._stored.stored(name).view(_NUMPY[info.dtype]).reshape(info.shape)

    def close(self) -> None:
        self._stored.close()
