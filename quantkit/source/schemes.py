"""How a checkpoint is quantised, by its config.json and headers: its tensors under the names and shapes of the original's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quantkit import arch
from quantkit.arch import Architecture
from quantkit.codecs import awq, compressed_tensors, fp8, gptq
from quantkit.errors import SourceError, UnsupportedError
from quantkit.values import FLOATS, TensorInfo

FLOAT8 = ("F8_E4M3", "F8_E5M2")
# What a runtime needs beside the weights: the scales of activations and of a quantised cache.
_IGNORED = re.compile(
    r"\.((input|output|activation|[kqv]|weight_global|act)_scale|input_scale_ub|(input|output|weight)_observer.*|input_zero_point)$"
)
_INTEGERS = ("I32", "I64", "I8", "U8")
_DEFAULT_GROUP = 128  # transformers' GPTQConfig and AwqConfig where config.json says none
_REMEDY = "give the original it was made from"
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
        raise UnsupportedError(f"config.json: quantised by {method} is not supported ({_KNOWN} are); {_REMEDY}")
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
    return [name.removesuffix(".weight") for name, info in infos.items() if info.dtype in FLOAT8 and name.endswith(".weight")]


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
    own = {**said, **_overrides(said.get("dynamic") or {}, name)}
    bits = own.get("bits")
    if form not in ("gptq", "gptq_v2") or bits not in gptq.BITS:
        raise UnsupportedError(
            f"config.json: GPTQ of {bits} bits in format {form} is not supported ({name}); known: 2, 3, 4, 8, gptq, gptq_v2; "
            f"{_REMEDY}"
        )
    parts = _parts(name, infos, {"codes": "qweight", "zeros": "qzeros", "scales": "scales"}, {"groups": "g_idx"})
    return Packed("gptq", parts, bits, 2 if form == "gptq_v2" else 1, group=_group(own))


def _overrides(dynamic: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What GPTQModel's `dynamic` says of a module: the first pattern that matches, "+:" or nothing before it; "-:" leaves it
    unquantised. Source: gptqmodel/quantization/config.py, _resolve_dynamic_override."""
    for pattern, settings in dynamic.items():
        if _matches(pattern.removeprefix("+:").removeprefix("-:"), name):
            return {} if pattern.startswith("-:") else settings or {}
    return {}


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise SourceError(f"config.json: {pattern!r} is no pattern of module names ({error}); fetch it again") from error


def _group(said: Mapping[str, Any]) -> int:
    found = said.get("group_size", said.get("q_group_size"))
    return _DEFAULT_GROUP if found is None else int(found)


def _awq(said: Mapping[str, Any], name: str, infos: Mapping[str, TensorInfo]) -> Packed:
    form, bits = str(said.get("version") or said.get("format") or "gemm").lower(), said.get("bits") or said.get("w_bit")
    if form != "gemm" or bits != 4:
        raise UnsupportedError(
            f"config.json: AWQ of {bits} bits in version {form} is not supported; known: 4 bits, gemm; {_REMEDY}"
        )
    parts = _parts(name, infos, {"codes": "qweight", "scales": "scales"}, {"zeros": "qzeros"})
    return Packed("awq", parts, 4, group=_group(said))


def _scaled(name: str, infos: Mapping[str, TensorInfo], block: Any) -> Packed:
    needed = {"codes": "weight", "scales": "weight_scale_inv|weight_scale"}
    parts = _parts(name, infos, needed, {"zeros": "weight_zero_point", "groups": "weight_g_idx"})
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
            f"config.json: compressed-tensors' {', '.join(strange)} is not supported; known: {', '.join(known)}; {_REMEDY}"
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
            if target == name or (target.startswith("re:") and _matches(target[3:], name)):
                return group.get("weights") or {}
    return next((group.get("weights") or {} for group in groups if "Linear" in (group.get("targets") or ())), {})


def _info(name: str, packed: Packed, infos: Mapping[str, TensorInfo]) -> TensorInfo:
    """What the tensor is unpacked; its bytes are those of all parts. Raises SourceError for parts that do not fit,
    UnsupportedError for one of a type that is not known."""
    stored = {role: infos[part] for role, part in packed.parts.items()}
    _check_types(packed, stored)
    shapes = {role: info.shape for role, info in stored.items()}
    found = _shape(packed, shapes) if len(shapes["codes"]) == 2 else None
    if found is None:
        listed = ", ".join(f"{info.name} {list(info.shape)}" for info in stored.values())
        shared = f"blocks of {list(packed.block)}" if packed.block else f"groups of {packed.group}"
        raise SourceError(
            f"{name} is quantised, and its parts do not fit each other ({listed}; {packed.bits} bits, {shared}); "
            "fetch the checkpoint again"
        )
    label = {"gptq": f"GPTQ-{packed.bits}", "awq": "AWQ-4", "packed": f"INT-{packed.bits}", "scaled": stored["codes"].dtype}
    nbytes = sum(info.nbytes for info in stored.values())
    return TensorInfo(f"{name}.weight", found[::-1] if packed.transposed else found, label[packed.kind], nbytes)


def _check_types(packed: Packed, stored: Mapping[str, TensorInfo]) -> None:
    words = ("I32",) if packed.kind != "scaled" else None
    known = {
        "codes": words or (*FLOAT8, "I8"), "scales": tuple(sorted(FLOATS)), "zeros": words or _INTEGERS,
        "groups": ("I32", "I64"),
    }  # fmt: skip
    for role, info in stored.items():
        if info.dtype not in known[role]:
            raise UnsupportedError(f"{info.name} is {info.dtype}; known for {role}: {', '.join(known[role])}; {_REMEDY}")


def _shape(packed: Packed, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(out, in) of the unpacked matrix; None where the parts' shapes contradict each other."""
    (first, second), scales, zeros = shapes["codes"], shapes["scales"], shapes.get("zeros")
    if packed.kind == "scaled":
        grouped = (
            len(scales) == 2 and scales[0] == first if "groups" in shapes else fp8.covers(scales, (first, second), packed.block)
        )
        fits = grouped and (zeros is None or math.prod(zeros) == math.prod(scales))
        return (first, second) if fits else None
    if packed.kind == "packed":
        groups = scales[1] if len(scales) == 2 else 1
        width = groups * packed.group if packed.group > 0 else second * (32 // packed.bits)
        fits = scales[:1] == (first,) and -(-width * packed.bits // 32) == second and width % groups == 0
        return (first, width) if fits and zeros in (None, (-(-first * packed.bits // 32), groups)) else None
    out, width = (second, first * 32 // packed.bits) if packed.kind == "gptq" else (second * awq.OUTPUTS, first)
    groups = scales[0] if "groups" in shapes else -(-width // packed.group) if packed.group > 0 else 1
    fits = scales == (groups, out) and zeros in (None, (groups, out * packed.bits // 32))
    return (out, width) if fits else None
