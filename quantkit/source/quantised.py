"""Checkpoints that are quantised already: what their packed tensors are, under the names and shapes of the original's.

`present` needs headers alone; `QuantisedTensors` reads: codes become float32 slab by slab, never a whole model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantkit import arch
from quantkit.arch import Architecture
from quantkit.codecs import awq, compressed_tensors, fp8, gptq
from quantkit.errors import SourceError, UnsupportedError
from quantkit.source.files import TensorFiles
from quantkit.values import F32, U8, TensorInfo

_NUMPY = {"I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1"}
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
# What a runtime needs beside the weights: the scales of activations and of a quantised cache.
_IGNORED = re.compile(
    r"\.((input|output|activation|[kqv]|weight_global|act)_scale|(input|output|weight)_observer.*|input_zero_point)$"
)
_KNOWN = "gptq, awq (gemm), fp8, fbgemm_fp8, compressed-tensors (pack-quantized, int-quantized, float-quantized)"


@dataclass(frozen=True, slots=True)
class Packed:
    """How a tensor is made of stored ones: `parts` maps their roles (codes, scales, zeros, groups) to their names."""

    kind: Literal["gptq", "awq", "packed", "scaled"]
    parts: Mapping[str, str]
    bits: int = 8
    version: int = 1  # of GPTQ's zeros
    block: tuple[int, int] | None = None  # rows and columns that share a scale
    group: int = -1  # columns that share a scale; -1: all
    transposed: bool = False  # the model has it as (in, out): GPT-2's


@dataclass(frozen=True, slots=True)
class Presented:
    """A quantised checkpoint as it would be unquantised; a tensor without an entry in `packed` is stored as it is."""

    infos: Mapping[str, TensorInfo]
    packed: Mapping[str, Packed] = field(default_factory=dict)


def present(config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> Presented:
    """The tensors of a checkpoint by what its config.json says of their quantisation; as they are where it says nothing.

    Raises UnsupportedError for a method that is not known, SourceError for a packed tensor that lacks a part.
    """
    said = config.get("quantization_config")
    if not isinstance(said, Mapping):
        return Presented(infos)
    method = str(said.get("quant_method") or said.get("method"))
    if method == "gptq":
        packed = {name: _gptq(said, name, infos) for name in _stems(infos, ".qweight")}
    elif method == "awq":
        packed = {name: _awq(said, name, infos) for name in _stems(infos, ".qweight")}
    elif method in ("fp8", "fbgemm_fp8"):
        block = said.get("weight_block_size")
        packed = {name: _scaled(name, infos, block) for name in _float8(infos)}
    elif method == "compressed-tensors":
        packed = _compressed(said, infos)
    else:
        raise UnsupportedError(
            f"config.json: quantised by {method} is not supported ({_KNOWN} are); give the original it was made from"
        )
    architecture = arch.find(config)
    packed = {name: replace(each, transposed=_transposed(architecture, f"{name}.weight")) for name, each in packed.items()}
    used = {part for each in packed.values() for part in each.parts.values()}
    rest = {name: info for name, info in infos.items() if name not in used and not _spare(name, packed)}
    return Presented({**rest, **{f"{name}.weight": _info(name, each, infos) for name, each in packed.items()}},
                     {f"{name}.weight": each for name, each in packed.items()})  # fmt: skip


def _transposed(architecture: Architecture, name: str) -> bool:
    """Whether the model's own tensor of that name, with its base model's prefix or without, lies as (in, out)."""
    for candidate in (name, f"{architecture.prefix}{name}"):
        try:
            return arch.template_of(architecture, candidate) in architecture.transposed
        except KeyError:
            continue
    return False


def _stems(infos: Mapping[str, TensorInfo], end: str) -> list[str]:
    return [name.removesuffix(end) for name in infos if name.endswith(end)]


def _float8(infos: Mapping[str, TensorInfo]) -> list[str]:
    return [name.removesuffix(".weight") for name, info in infos.items() if info.dtype in _FLOAT8 and name.endswith(".weight")]


def _spare(name: str, packed: Mapping[str, Packed]) -> bool:
    """What belongs to a packed module and makes none of its weight."""
    stem, _, part = name.rpartition(".")
    return bool(_IGNORED.search(name)) or (stem in packed and part in ("weight_shape", "g_idx", "weight_g_idx"))


def _parts(name: str, infos: Mapping[str, TensorInfo], needed: Mapping[str, str], maybe: Mapping[str, str]) -> dict[str, str]:
    """Role -> stored name, of parts given as role -> suffixes, alternatives apart by "|". Raises SourceError."""
    found = {}
    for role, ends in {**needed, **maybe}.items():
        stored = next((f"{name}.{end}" for end in ends.split("|") if f"{name}.{end}" in infos), None)
        if stored is not None:
            found[role] = stored
        elif role in needed:
            raise SourceError(
                f"{name} is quantised and lacks its {role}: {ends.replace('|', ' or ')}; fetch the checkpoint again"
            )
    return found


def _gptq(said: Mapping[str, Any], name: str, infos: Mapping[str, TensorInfo]) -> Packed:
    form = str(said.get("checkpoint_format") or said.get("format") or "gptq")
    bits = said.get("bits")
    if form not in ("gptq", "gptq_v2") or bits not in gptq.BITS:
        raise UnsupportedError(
            f"config.json: GPTQ of {bits} bits in format {form} is not supported; known: 2, 3, 4, 8, gptq, gptq_v2"
        )
    parts = _parts(name, infos, {"codes": "qweight", "zeros": "qzeros", "scales": "scales"}, {"groups": "g_idx"})
    return Packed("gptq", parts, bits, 2 if form == "gptq_v2" else 1)


def _awq(said: Mapping[str, Any], name: str, infos: Mapping[str, TensorInfo]) -> Packed:
    form, bits = str(said.get("version") or said.get("format") or "gemm").lower(), said.get("bits") or said.get("w_bit")
    if form != "gemm" or bits != 4:
        raise UnsupportedError(f"config.json: AWQ of {bits} bits in version {form} is not supported; known: 4 bits, gemm")
    return Packed("awq", _parts(name, infos, {"codes": "qweight", "scales": "scales"}, {"zeros": "qzeros"}), 4)


def _scaled(name: str, infos: Mapping[str, TensorInfo], block: Any) -> Packed:
    parts = _parts(name, infos, {"codes": "weight", "scales": "weight_scale_inv|weight_scale"}, {"zeros": "weight_zero_point"})
    return Packed("scaled", parts, block=_pair(block))


def _pair(block: Any) -> tuple[int, int] | None:
    if isinstance(block, str):
        block = block.split("x")
    return (int(block[0]), int(block[1])) if block else None


def _compressed(said: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Packed]:
    groups = list((said.get("config_groups") or {}).values())
    known = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
    sparse = (said.get("sparsity_config") or {}).get("format")
    forms = {said.get("format"), sparse, *(group.get("format") for group in groups)} - {None, "mixed-precision", "dense"}
    if strange := sorted(map(str, forms - set(known))):
        raise UnsupportedError(
            f"config.json: compressed-tensors' {', '.join(strange)} is not supported; known: {', '.join(known)}; "
            "give the original it was made from"
        )
    found = {}
    for name in _stems(infos, ".weight_packed"):
        scheme = _scheme(name, groups)
        if (bits := scheme.get("num_bits")) not in compressed_tensors.BITS:
            raise UnsupportedError(f"config.json: {name} has codes of {bits} bits; known: 2, 4, 8")
        needed, maybe = (
            {"codes": "weight_packed", "scales": "weight_scale"},
            {"zeros": "weight_zero_point", "groups": "weight_g_idx"},
        )
        found[name] = Packed("packed", _parts(name, infos, needed, maybe), bits, group=int(scheme.get("group_size") or -1))
    for name in [*_float8(infos), *_stems({k: v for k, v in infos.items() if v.dtype == "I8"}, ".weight")]:
        found[name] = _scaled(name, infos, _scheme(name, groups).get("block_structure"))
    return found


def _scheme(name: str, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The weights' scheme of the group that names a module, or its class: a name or a pattern goes before a class."""
    for group in groups:
        for target in group.get("targets") or ():
            if target == name or (target.startswith("re:") and re.match(target[3:], name)):
                return group.get("weights") or {}
    return next((group.get("weights") or {} for group in groups if "Linear" in (group.get("targets") or ())), {})


def _info(name: str, packed: Packed, infos: Mapping[str, TensorInfo]) -> TensorInfo:
    """What the tensor is unpacked; its bytes are those of all parts. Raises SourceError for parts that do not fit."""
    codes, scales = (infos[packed.parts[role]] for role in ("codes", "scales"))
    nbytes = sum(infos[part].nbytes for part in packed.parts.values())
    shapes = ", ".join(f"{infos[part].name} {list(infos[part].shape)}" for part in packed.parts.values())
    bad = SourceError(f"{name} is quantised, and its parts do not fit each other ({shapes}); fetch the checkpoint again")
    if len(codes.shape) != 2:
        raise bad
    first, second = codes.shape
    if packed.kind == "gptq":
        shape, label = (second, first * 32 // packed.bits), f"GPTQ-{packed.bits}"
        zeros = infos[packed.parts["zeros"]].shape
        fits = scales.shape[1:] == (second,) and zeros == (scales.shape[0], second * packed.bits // 32)
        fits = fits and ("groups" in packed.parts or shape[1] % scales.shape[0] == 0)
    elif packed.kind == "awq":
        shape, label = (second * awq.OUTPUTS, first), "AWQ-4"
        fits = scales.shape[1:] == (shape[0],) and first % scales.shape[0] == 0
    elif packed.kind == "packed":
        groups = scales.shape[1] if len(scales.shape) == 2 else 1
        width = groups * packed.group if packed.group > 0 else second * (32 // packed.bits)
        shape, label = (first, width), f"INT-{packed.bits}"
        fits = scales.shape[0] == first and -(-width * packed.bits // 32) == second and width % groups == 0
    else:
        shape, label, fits = (first, second), codes.dtype, math.prod(scales.shape) > 0
    if not fits:
        raise bad
    shape = shape[::-1] if packed.transposed else shape
    return TensorInfo(f"{name}.weight", shape, label, nbytes)


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
        values = fp8.decode(raw, dtype) if dtype in _FLOAT8 else raw.view(np.int8).astype(np.float32)
        try:
            if "zeros" in packed.parts:
                zeros = self._integers(packed.parts["zeros"]).reshape(self._stored.infos[packed.parts["scales"]].shape)
                values -= fp8.spread(zeros.astype(np.float32), shape, packed.block, first, last)
            values *= fp8.spread(self._stored.read(packed.parts["scales"]), shape, packed.block, first, last)
        except ValueError as error:
            raise SourceError(f"{packed.parts['codes']}: {error}; fetch the checkpoint again") from error
        return values

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
        if "groups" not in packed.parts:
            return np.arange(width, dtype=np.intp) // (width // count)
        found = self._integers(packed.parts["groups"]).reshape(-1).astype(np.intp)
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
