"""Which type each tensor of a GGUF file gets: llama.cpp's own rules, tensor for tensor.

Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type_impl`, `tensor_type_fallback`), without an importance matrix's
special cases where the file types here have none. Names are GGUF's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType

from quantkit.codecs.gguf import codecs
from quantkit.errors import InputError
from quantkit.values import FLOATS

DEFAULT: Mapping[str, str] = MappingProxyType(
    {
        "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
        "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "MXFP4_MOE": "MXFP4",
    }
)  # fmt: skip
"""The type of most tensors, for file types that are not named after it."""

FALLBACK: Mapping[str, str] = MappingProxyType(
    {
        "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1",
        "Q6_K": "Q8_0",
    }
)  # fmt: skip
"""For rows that are no multiple of 256; what has no multiple of 32 either becomes F16."""

FILE_TYPE: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
        "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q2_K_S": 21, "IQ4_NL": 25,
        "IQ4_XS": 30, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
    }
)  # fmt: skip
"""general.file_type (LlamaFileType)."""

BLOCK = MappingProxyType({name: codec.block for name, codec in codecs().items()})
SEVENTY_B_LAYERS = 80  # of llama and qwen2 with fewer key-value heads than heads
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "attn_rel_b.weight")  # in F32 whatever the file type
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")
_FIFTH_OF_EIGHT = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules ask of a model; `architecture` is GGUF's name, `experts` is 0 for a dense one."""

    architecture: str
    layers: int
    heads: int = 1
    kv_heads: int = 1
    experts: int = 0

    @property
    def sharing(self) -> int:
        """Query heads to one key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Wish:
    """What a recipe says of types beyond the file type; `rules` are (pattern of a tensor's name, type), the first counts."""

    rules: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    token_embd: str | None = None
    pure: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A tensor's type, the type that the mixture wanted for it, and why."""

    type: str
    wanted: str
    reason: str


def choose(
    file_type: str, shapes: Mapping[str, tuple[int, ...]], model: Model, *, imatrix: bool, wish: Wish = Wish()
) -> dict[str, Choice]:
    """The type of every tensor of a file.

    shapes: GGUF tensor name -> shape, rows first (the last dimension is the row's width). imatrix: importance weights are
    given. Raises InputError for a rule that matches no tensor.
    """
    _check_rules(wish.rules, shapes)
    tied = "output.weight" not in shapes
    rules = _Rules(file_type, model, imatrix, tied, _value_tensors(shapes), _Seen())
    chosen = {}
    for name in sorted(shapes, key=_visit_order):
        shape = shapes[name]
        if not is_quantised(name, shape):
            chosen[name] = Choice("F32", "F32", "one-dimensional, a norm or a small table: kept in F32")
            continue
        wanted, reason = said(name, wish, tied) or (
            rules.default() if wish.pure or file_type in FLOATS else rules.wanted(name, shape)
        )
        fitting = fit(wanted, shape[-1])
        if fitting != wanted:
            multiple = 256 if wanted in FALLBACK else 32
            reason += f"; rows of {shape[-1]} are no multiple of {multiple}: {fitting} instead of {wanted}"
        chosen[name] = Choice(fitting, wanted, reason)
    return chosen


def _check_rules(rules: tuple[tuple[str, str], ...], names: Iterable[str]) -> None:
    names = list(names)
    idle = [pattern for pattern, _ in rules if not any(matches(pattern, name) for name in names)]
    if idle:
        near = {
            pattern: get_close_matches(pattern, sorted({re.sub(r"\d+", "*", name) for name in names}), 2) for pattern in idle
        }
        said = "; ".join(f"{pattern!r} (near: {', '.join(near[pattern]) or 'nothing'})" for pattern in idle)
        raise InputError(f"rules that match no tensor: {said}; `quantkit plan` lists the tensors")


def matches(pattern: str, name: str) -> bool:
    """Whether a rule's shell-style pattern means a GGUF tensor, with or without its ".weight"."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def said(name: str, wish: Wish, tied: bool) -> tuple[str, str] | None:
    """What the recipe says of a tensor: of the embedding and the output head first, as llama-quantize has it."""
    if name == "token_embd.weight" and wish.token_embd:
        return wish.token_embd, "token_embd of the recipe"
    if (name == "output.weight" or (tied and name == "token_embd.weight")) and wish.output:
        return wish.output, "output of the recipe"
    for pattern, kind in wish.rules:
        if matches(pattern, name):
            return kind, f"rule {pattern!r}"
    return None


@dataclass(slots=True)
class _Seen:
    """How many tensors of a class the rules have been asked of: llama.cpp counts those alone."""

    values: int = 0
    downs: int = 0


@dataclass(frozen=True, slots=True)
class _Rules:
    """llama_tensor_get_type_impl: asked tensor by tensor in llama.cpp's order, since some rules count."""

    file_type: str
    model: Model
    imatrix: bool
    tied: bool
    values: int
    seen: _Seen

    def default(self) -> tuple[str, str]:
        return DEFAULT.get(self.file_type, self.file_type), f"{self.file_type}'s default"

    def wanted(self, name: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """A tensor's type before its shape is looked at, and why."""
        if name == "output.weight" or (name == "token_embd.weight" and self.tied):
            return self._head(shape[-1])
        if self.file_type == "MXFP4_MOE":
            return ("MXFP4", "experts") if len(shape) == 3 and shape[0] > 1 else ("Q8_0", "all but the experts")
        if name == "token_embd.weight":
            ternary = self.file_type in ("TQ1_0", "TQ2_0")
            return ("Q4_K", "embedding of a ternary file") if ternary else self.default()
        if _has(name, _VALUES):
            return self._value()
        if "attn_k.weight" in name and self.model.experts == 8:
            return "Q8_0", "attention key of an 8-expert model: small"
        if "ffn_down" in name:
            return self._down(name)
        if "attn_output.weight" in name:
            return self._output()
        return self.default()

    def _head(self, width: int) -> tuple[str, str]:
        what = "embedding, also the output head" if self.tied else "output head"
        default, _ = self.default()
        if default == "Q8_0" or self.file_type == "MXFP4_MOE":
            return "Q8_0", what
        if self.model.architecture == "falcon":
            return "Q8_0", f"{what} of falcon"
        if width % BLOCK[default]:
            return "Q8_0", f"{what}; rows of {width} do not fit {default}'s blocks: Q8_0 by llama.cpp's rule"
        return "Q6_K", what

    def _value(self) -> tuple[str, str]:
        index, self.seen.values = self.seen.values, self.seen.values + 1
        wanted, reason = self.default()
        match self.file_type:
            case "Q2_K":
                shared = self.model.sharing >= 4
                wanted, reason = ("Q4_K", "attention value, shared by four heads") if shared else ("Q3_K", "attention value")
            case "Q2_K_S" if self.model.sharing >= 4:
                wanted, reason = "Q4_K", "attention value, shared by four heads"
            case "Q3_K_M":
                wanted, reason = ("Q5_K" if index < 2 else "Q4_K"), "attention value"
            case "Q3_K_L":
                wanted, reason = "Q5_K", "attention value"
            case "IQ4_NL" | "IQ4_XS" if self.model.sharing >= 4:
                wanted, reason = "Q5_K", "attention value, shared by four heads"
            case "Q4_K_M" | "Q5_K_M" if more_bits(index, self.values):
                wanted, reason = "Q6_K", "attention value in a layer that gets more bits"
            case "Q4_K_S" if index < 4:
                wanted, reason = "Q5_K", "attention value of the first four layers"
        if self._seventy_b() and wanted in ("Q3_K", "Q4_K"):
            wanted, reason = "Q5_K", "attention value of an 80-layer model: shared by eight heads"
        if self.model.experts == 8:
            wanted, reason = "Q8_0", "attention value of an 8-expert model: small"
        return wanted, reason

    def _seventy_b(self) -> bool:
        named = self.model.architecture in ("llama", "qwen2") and self.model.layers == SEVENTY_B_LAYERS
        return named and (self.model.sharing > 1 or self.model.architecture == "qwen2")

    def _down(self, name: str) -> tuple[str, str]:
        count, self.seen.downs = self.seen.downs, self.seen.downs + 1
        number = block(name)
        layer = number if self.model.experts > 1 and number is not None else count
        layers, falcon = self.model.layers, self.model.architecture == "falcon"
        bits, early, first = more_bits(layer, layers), layer < layers // 8, layer < layers // 16
        generous = "ffn_down in a layer that gets more bits"
        match self.file_type:
            case "Q2_K":
                return "Q3_K", "ffn_down"
            case "Q2_K_S" if early:
                return "Q4_K", "ffn_down of the first eighth of the layers"
            case "Q3_K_M":
                return ("Q5_K" if first else "Q4_K" if not falcon or bits else "Q3_K"), "ffn_down"
            case "Q3_K_L":
                return ("Q4_K" if falcon else "Q5_K"), "ffn_down"
            case "Q4_K_M" if falcon:
                return ("Q6_K" if first else "Q5_K" if bits else "Q4_K"), "ffn_down of falcon"
            case "Q4_K_M" | "Q5_K_M" if bits:
                return "Q6_K", generous
            case "IQ4_NL" | "IQ4_XS" if early and not self.imatrix:
                return "Q5_K", "ffn_down of the first eighth of the layers, without importance weights"
            case "Q4_K_S" if early and not falcon:
                return "Q5_K", "ffn_down of the first eighth of the layers"
            case "Q4_0" | "Q5_0" if early and self.imatrix:
                return self.file_type[:-1] + "1", "ffn_down of the first eighth of the layers, with importance weights"
        return self.default()

    def _output(self) -> tuple[str, str]:
        if self.model.architecture == "falcon":
            return ("Q4_K", "attention output") if self.file_type == "Q3_K_L" else self.default()
        if self.model.experts == 8:
            small = self.file_type in _FIFTH_OF_EIGHT
            return ("Q5_K", "attention output of an 8-expert model") if small else self.default()
        more = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.file_type)
        return (more, "attention output") if more else self.default()


def more_bits(index: int, count: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def fit(wanted: str, width: int) -> str:
    """The type that rows of this width can have: the wanted one, or down the fallback ladder."""
    if width % BLOCK[wanted] == 0:
        return wanted
    below = FALLBACK.get(wanted, wanted)
    return "F16" if width % BLOCK[below] else below


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """llama.cpp's tensor_allows_quantization, for the architectures here."""
    return len(shape) > 1 and name.endswith(".weight") and not name.endswith(_KEPT) and name not in _KEPT_WHOLE


_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


def _has(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


def _value_tensors(names: Iterable[str]) -> int:
    """How many tensors are attn_v or stand for it (fused attn_qkv)."""
    return sum(_has(name, _VALUES) for name in names)


def block(name: str) -> int | None:
    """The number of the block that a tensor belongs to."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def _visit_order(name: str) -> tuple[int, str]:
    number = block(name)
    return (-1 if number is None else number), name
