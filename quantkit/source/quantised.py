"""Checkpoints that are quantised already, read as float32 slab by slab, never a whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.codecs import awq, compressed_tensors, fp8, gptq
from quantkit.errors import SourceError, WeightError
from quantkit.source.files import TensorFiles
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
        parts, (rows, width) = packed.parts, shape
        scales = self._stored.read(parts["scales"])
        scales = scales.reshape(rows, -1) if packed.kind == "packed" else np.ascontiguousarray(scales.T)
        zeros = np.full(scales.shape, 1 << (packed.bits - 1), np.int16)
        if "zeros" in parts:
            stored = self._integers(parts["zeros"])
            if packed.kind == "gptq":
                zeros = gptq.unpack_zeros(stored, packed.bits, packed.version)
            elif packed.kind == "awq":
                zeros = awq.unpack(stored).astype(np.int16)
            else:
                zeros = compressed_tensors.unpack_zeros(stored, packed.bits, rows).astype(np.int16)
        groups = self._groups(packed, width, scales.shape[1])
        return gptq.dequantise(self._unpacked(packed, shape, first, last), scales[first:last], zeros[first:last], groups)

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
