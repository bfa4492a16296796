"""onnxruntime on encoders: embeddings, pooled as the folder's configuration says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.engines import onnxruntime_decoder
from quantkit.engines.onnxruntime_decoder import beside
from quantkit.values import F32, Embedder

Ids = NDArray[np.int64]


def open_embedder(path: Path, *, threads: int) -> Embedder:
    """Loads an encoder. Errors as of onnxruntime_decoder.session."""
    said = json.loads(beside(path, "config.json").read_text(encoding="utf-8")).get("pooling")
    return _Embedder(onnxruntime_decoder.session(path, threads=threads), said, onnxruntime_decoder.name())


def states(session: Any, ids: Ids, mask: Ids) -> F32:
    """Final hidden states (batch, length, width) of texts `ids` (batch, length), filled up where `mask` is 0."""
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    wanted = {value.name for value in session.get_inputs()}
    found: F32 = session.run(["last_hidden_state"], {name: values for name, values in given.items() if name in wanted})[0]
    return found


@dataclass(slots=True)
class _Embedder:
    _session: Any
    _pooling: str | None
    engine: str

    def embed(self, tokens: Sequence[int]) -> F32:
        ids = np.array([tokens], np.int64)
        found = states(self._session, ids, np.ones_like(ids))[0]
        if self._pooling == "mean":
            return np.asarray(found.mean(0))
        at = -1 if self._pooling == "last" else 0
        return np.asarray(found[at])

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._session = None
