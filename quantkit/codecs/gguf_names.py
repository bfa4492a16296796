"""Tensor names and row order: Hugging Face <-> GGUF. The names come from gguf-py's TensorNameMap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.arch import Architecture
from quantkit.arch import names as layer_names

T = TypeVar("T", bound=np.generic)

# GGUF-only tensor: the divisors of the rotary frequencies (llama3 scaling); codecs/gguf_config.py makes it.
ROPE_FREQS = "rope_freqs.weight"


def to_gguf(arch: Architecture, layers: int) -> dict[str, str]:
    """HF name -> GGUF name of every tensor the architecture may have, in the checkpoint's order."""
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch.gguf)
    table: Any = gguf.get_tensor_name_map(number, layers)
    found = {}
    for template in arch.tensors:
        for name in layer_names(template, layers):
            found[name] = table.get_name(name, try_suffixes=(".weight", ".bias"))
            if found[name] is None:
                raise KeyError(f"arch {arch.model_type}: gguf-py has no GGUF name for {name!r}")
    return found


def from_gguf(arch: Architecture, layers: int) -> dict[str, str]:
    """GGUF name -> HF name: the inverse of `to_gguf`."""
    return {name: hf for hf, name in to_gguf(arch, layers).items()}


def heads(arch: Architecture, name: str, config: Mapping[str, Any]) -> int:
    """The number of heads within which GGUF permutes this HF tensor's rows; 0 if it does not."""
    template = ".".join("{}" if part.isdecimal() else part for part in name.split("."))
    key = arch.permuted.get(template)
    return int(config.get(key) or config["num_attention_heads"]) if key else 0


def permute(rows: NDArray[T], heads: int) -> NDArray[T]:
    """HF row order to GGUF's: within each head, rotary halves (x0 x1 .. | y0 y1 ..) become pairs (x0 y0 x1 y1 ..).

    rows: (n, ...) of any dtype, n a multiple of 2 * heads; packed rows too, since a row is moved whole.
    The same as LlamaModel.permute of llama.cpp's conversion/llama.py.
    """
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: NDArray[T], heads: int) -> NDArray[T]:
    """GGUF row order to HF's: the inverse of `permute`."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
