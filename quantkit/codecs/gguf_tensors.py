"""Which tensors a GGUF is made of, how each is made of a checkpoint's, and back. Names come from gguf-py's TensorNameMap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit import arch as architectures
from quantkit import checkpoint
from quantkit.arch import Architecture
from quantkit.checkpoint import Piece
from quantkit.values import F32, TensorInfo, Weights

T = TypeVar("T", bound=np.generic)
Reorder = Callable[[NDArray[Any]], NDArray[Any]]

# GGUF-only tensors, the divisors of the rotary frequencies (llama3 scaling, longrope): codecs/gguf_config.py makes them.
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
EXTRA = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a GGUF tensor is made: the rows of its pieces one below the other, then in another order if there is one.

    shape: rows first. transposed: its one piece holds it as (in, out). shift: what is added to every value; factor: what
    every value is multiplied by.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    reorder: Reorder | None = None
    transposed: bool = False
    shift: float = 0.0
    factor: float = 1.0

    @property
    def source(self) -> str:
        """The stored tensors in one word: the name, with * where several differ."""
        names = dict.fromkeys(piece.name for piece in self.pieces)
        first = next(iter(names))
        if len(names) == 1:
            return first
        parts = zip(*(name.split(".") for name in names), strict=True)
        return ".".join(same[0] if len(set(same)) == 1 else "*" for same in parts)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


def placements(arch: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Placement]:
    """GGUF name -> placement of every tensor of a checkpoint that `checkpoint.verify` accepts, in its order."""
    located, lengths = checkpoint.locate(arch, config, infos), architectures.dims(arch, config)
    found = {}
    for template in architectures.templates(arch, config):
        dimensions = tuple(lengths[dim] for dim in arch.tensors[template])
        shape = dimensions[::-1] if template in arch.transposed else dimensions
        for layer, group in enumerate(architectures.names(arch, config, template)):
            if any(name not in located for name in group):
                continue
            name = gguf_name(arch, config, template, layer)
            found[name] = Placement(
                name,
                (len(group), *shape) if template in arch.stacked else shape,
                tuple(located[part] for part in group),
                _reorder(arch, template, config),
                template in arch.transposed,
                1.0 if template in arch.shifted else 0.0,
                _factor(arch, template, config),
            )
    return found


def gguf_name(arch: Architecture, config: Mapping[str, Any], template: str, layer: int) -> str:
    """The GGUF name of a template's tensor in `layer`. Raises KeyError for one that gguf-py does not know."""
    if template in arch.named:
        return arch.named[template].format(layer)
    count = max(architectures.layers(arch, config, template), 1)
    first, _, second = template.partition("{}")
    name = first + str(layer) + second.replace(".{}", "") if "{}" in template else template
    found: str | None = _table(arch.gguf, count).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise KeyError(f"arch {arch.model_type}: gguf-py has no GGUF name for {name!r}")
    return found


@cache
def _table(gguf_arch: str, layers: int) -> Any:
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == gguf_arch)
    return gguf.get_tensor_name_map(number, layers)


def _factor(arch: Architecture, template: str, config: Mapping[str, Any]) -> float:
    full = architectures.standard(arch, config)
    scaled = template in arch.scaled and bool(full.get("scale_decoder_outputs"))
    return float(full["hidden_size"] ** -0.5) if scaled else 1.0


def _reorder(arch: Architecture, template: str, config: Mapping[str, Any]) -> Reorder | None:
    standard = architectures.standard(arch, config)
    if template in arch.permuted:
        return partial(permute, heads=standard[arch.permuted[template]])
    if template in arch.grouped:
        heads, kv_heads = standard["num_attention_heads"], standard["num_key_value_heads"]
        return partial(ungroup, heads=heads, kv_heads=kv_heads)
    return None


def permute(rows: NDArray[T], heads: int) -> NDArray[T]:
    """HF row order to GGUF's: within each head, rotary halves (x0 x1 .. | y0 y1 ..) become pairs (x0 y0 x1 y1 ..).

    rows: (n, ...) of any dtype, n a multiple of 2 * heads; packed rows too, since a row is moved whole.
    The same as LlamaModel.permute of llama.cpp's conversion/llama.py.
    """
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def ungroup(rows: NDArray[T], heads: int, kv_heads: int) -> NDArray[T]:
    """Rows (n, ...) of a fused q/k/v that lie by key-value head to all queries, then all keys, then all values.

    The same as FalconModel.modify_tensors and, with as many key-value heads as heads, GPTNeoXModel's (llama.cpp).
    """
    shared = heads // kv_heads
    split = rows.reshape(kv_heads, shared + 2, rows.shape[0] // (heads + 2 * kv_heads), *rows.shape[1:])
    parts = (split[:, :shared], split[:, shared], split[:, shared + 1])
    return np.concatenate([part.reshape(-1, *rows.shape[1:]) for part in parts])


def order(placement: Placement) -> NDArray[np.intp] | None:
    """Index of the source row that each of GGUF's rows is, or None where they are the same."""
    if placement.reorder is None:
        return None
    return placement.reorder(np.arange(placement.rows if len(placement.shape) > 1 else placement.shape[0]))


def read(weights: Weights, placement: Placement, start: int, stop: int) -> F32:
    """Rows [start, stop) as float32 (stop - start, width) in the order of the pieces, not yet reordered; a vector is one
    row and whole, in GGUF's order."""
    if len(placement.shape) == 1:
        vector = weights.read(placement.pieces[0].name).reshape(1, -1) * np.float32(placement.factor)
        vector += np.float32(placement.shift)
        index = order(placement)
        return vector if index is None else np.ascontiguousarray(vector[:, index])
    if placement.transposed:
        return np.ascontiguousarray(weights.read(placement.pieces[0].name).T[start:stop])
    width, parts, first = placement.shape[-1], [], 0
    for piece in placement.pieces:
        last = first + rows_of(placement)
        if start < last and stop > first:
            low, high = max(start, first) - first, min(stop, last) - first
            parts.append(_rows(weights, piece, low, high, width, rows_of(placement) == 1))
        first = last
    found = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return found + np.float32(placement.shift) if placement.shift else found


def rows_of(placement: Placement) -> int:
    """Rows of the GGUF tensor that one piece gives."""
    return placement.rows // len(placement.pieces)


def _rows(weights: Weights, piece: Piece, low: int, high: int, width: int, vectors: bool) -> F32:
    if vectors:  # one row of a stack is a whole vector of the checkpoint
        return weights.read(piece.name).reshape(1, width)
    return weights.read(piece.name, piece.start + low, piece.start + high).reshape(high - low, width)


def read_ordered(weights: Weights, placement: Placement, start: int, stop: int) -> F32:
    """Rows [start, stop) in GGUF's order, float32 (stop - start, width); a reordered tensor is read whole."""
    index = order(placement)
    if index is None or len(placement.shape) == 1:
        return read(weights, placement, start, stop)
    return np.ascontiguousarray(read(weights, placement, 0, placement.rows)[index[start:stop]])
