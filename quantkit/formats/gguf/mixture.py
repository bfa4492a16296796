"""Which type each tensor of a GGUF file gets: llama.cpp's own rules, tensor for tensor.

Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type_impl`, `tensor_type_fallback`), without an importance matrix's
special cases where the file types here have none. Names are GGUF's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantkit.recipe import GgufType
from quantkit.values import FLOATS

DEFAULT: Mapping[str, str] = MappingProxyType({"Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K"})
"""The type of most tensors, for file types that are not named after it."""

FALLBACK: Mapping[str, str] = MappingProxyType({"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"})
"""For rows that are no multiple of 256; what has no multiple of 32 either becomes F16."""

FILE_TYPE: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_S": 14, "Q4_K_M": 15,
        "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32,
    }
)  # fmt: skip
"""general.file_type (LlamaFileType)."""

SEVENTY_B_LAYERS = 80


@dataclass(frozen=True, slots=True)
class Choice:
    """A tensor's type, the type that the mixture wanted for it, and why."""

    type: str
    wanted: str
    reason: str


def choose(
    file_type: GgufType, shapes: Mapping[str, tuple[int, ...]], layers: int, *, architecture: str, imatrix: bool
) -> dict[str, Choice]:
    """The type of every tensor of a file.

    shapes: GGUF tensor name -> shape, rows first (the last dimension is the row's width).
    layers: number of blocks. architecture: GGUF's name. imatrix: importance weights are given.
    """
    values = _value_tensors(shapes)
    tied = "output.weight" not in shapes
    chosen = {}
    for name in sorted(shapes, key=_visit_order):
        shape = shapes[name]
        if not _is_quantised(name, shape):
            chosen[name] = Choice("F32", "F32", "one-dimensional or a norm: kept in F32")
            continue
        wanted, reason = _wanted(file_type, name, shape[-1], values, layers, tied, architecture, imatrix)
        fitting = _fit(wanted, shape[-1])
        if fitting != wanted:
            multiple = 256 if wanted in FALLBACK else 32
            reason += f"; rows of {shape[-1]} are no multiple of {multiple}: {fitting} instead of {wanted}"
        chosen[name] = Choice(fitting, wanted, reason)
    return chosen


def _wanted(
    file_type: str, name: str, width: int, values: Mapping[str, int], layers: int, tied: bool, architecture: str, imatrix: bool
) -> tuple[str, str]:
    default = DEFAULT.get(file_type, file_type)
    if file_type in FLOATS:
        return default, f"{file_type} file"
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        return _head(default, width, tied)
    layer = block(name)
    if name in values:
        return _value(file_type, default, values[name], len(values), layers, architecture)
    if layer is not None and ".ffn_down" in name:
        return _down(file_type, default, layer, layers, imatrix)
    return default, f"{file_type}'s default"


def _head(default: str, width: int, tied: bool) -> tuple[str, str]:
    what = "embedding, also the output head" if tied else "output head"
    if default == "Q8_0":
        return "Q8_0", what
    if width % (256 if default in FALLBACK else 32):
        return "Q8_0", f"{what}; rows of {width} do not fit {default}'s blocks: Q8_0 by llama.cpp's rule"
    return "Q6_K", what


def _value(file_type: str, default: str, index: int, count: int, layers: int, architecture: str) -> tuple[str, str]:
    wanted, reason = default, f"{file_type}'s default"
    if file_type in ("Q4_K_M", "Q5_K_M") and more_bits(index, count):
        wanted, reason = "Q6_K", "attention value in a layer that gets more bits"
    elif file_type == "Q4_K_S" and index < 4:
        wanted, reason = "Q5_K", "attention value of the first four layers"
    if architecture == "llama" and layers == SEVENTY_B_LAYERS and wanted == "Q4_K":
        return "Q5_K", "attention value of an 80-layer model: shared by eight heads"
    return wanted, reason


def _down(file_type: str, default: str, layer: int, layers: int, imatrix: bool) -> tuple[str, str]:
    if file_type in ("Q4_K_M", "Q5_K_M") and more_bits(layer, layers):
        return "Q6_K", "ffn_down in a layer that gets more bits"
    if layer < layers // 8:
        if file_type == "Q4_K_S":
            return "Q5_K", "ffn_down of the first eighth of the layers"
        if file_type in ("Q4_0", "Q5_0") and imatrix:
            return file_type[:-1] + "1", "ffn_down of the first eighth of the layers, with importance weights"
    return default, f"{file_type}'s default"


def more_bits(index: int, count: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _fit(wanted: str, width: int) -> str:
    if wanted in FLOATS:
        return wanted
    if wanted in FALLBACK and width % 256:
        wanted = FALLBACK[wanted]
    return "F16" if width % 32 else wanted


def _is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and name.endswith(".weight") and not name.endswith("_norm.weight")


def _value_tensors(names: Iterable[str]) -> dict[str, int]:
    """attn_v and what stands for it (fused attn_qkv), with its place in the order in which llama.cpp counts them."""
    kinds = (".attn_v.weight", ".attn_qkv.weight", ".attn_kv_b.weight")
    return {name: i for i, name in enumerate(sorted((n for n in names if n.endswith(kinds)), key=_visit_order))}


def block(name: str) -> int | None:
    """The number of the block that a tensor belongs to."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def _visit_order(name: str) -> tuple[int, str]:
    number = block(name)
    return (-1 if number is None else number), name
