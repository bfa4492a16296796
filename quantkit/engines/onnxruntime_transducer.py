"""onnxruntime on encoder-decoders in three graphs: the encoder, the decoder's first tokens, and one token more; or in two,
of which one holds both decoders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.engines import onnxruntime_decoder, onnxruntime_encoder
from quantkit.engines.onnxruntime_decoder import beside
from quantkit.errors import InputError
from quantkit.values import F32, Transducer

Ids = NDArray[np.int64]
ENCODER, FIRST, LATER, MERGED = "encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged"


@dataclass(frozen=True, slots=True)
class Graphs:
    """The sessions of the encoder and the decoders; of decoders in one graph twice the same."""

    encoder: Any
    first: Any
    later: Any

    def encode(self, ids: Ids, mask: Ids) -> F32:
        return onnxruntime_encoder.states(self.encoder, ids, mask)

    def begin(self, ids: Ids, states: F32, mask: Ids) -> tuple[F32, dict[str, F32]]:
        """Logits after each of `ids` (batch, length) and what the next token needs of them."""
        return _run(self.first, {"input_ids": ids, "encoder_hidden_states": states, "encoder_attention_mask": mask})

    def go_on(self, ids: Ids, mask: Ids, past: Mapping[str, F32]) -> tuple[F32, dict[str, F32]]:
        """As `begin`, after tokens of which `past` is what they left."""
        logits, present = _run(self.later, {"input_ids": ids, "encoder_attention_mask": mask, **past})
        return logits, {**past, **present}


def _run(session: Any, given: Mapping[str, Any]) -> tuple[F32, dict[str, F32]]:
    outputs, later = [value.name for value in session.get_outputs()], any("past_key_values" in name for name in given)
    fed = {
        value.name: given[value.name] if value.name in given else _unused(value, given, later) for value in session.get_inputs()
    }
    found = dict(zip(outputs, session.run(outputs, fed), strict=True))
    logits: F32 = found.pop("logits")
    return logits, {name.replace("present", "past_key_values", 1): value for name, value in found.items()}


def _unused(value: Any, given: Mapping[str, Any], later: bool) -> NDArray[Any]:
    """What the input `value` of two decoders in one graph is fed where the one that runs does not read it."""
    if value.type == "tensor(bool)":  # which of them runs
        return np.array([later])
    batch = len(given["input_ids"])
    return np.zeros([batch, *(size if isinstance(size, int) else 0 for size in value.shape[1:])], np.float32)


def load(encoder: Path, *, threads: int) -> Graphs:
    """The graphs beside an encoder's. Errors as of onnxruntime_decoder.session."""
    stem = encoder.name.removeprefix(ENCODER)
    open_one = partial(onnxruntime_decoder.session, threads=threads)
    if (merged := encoder.with_name(f"{MERGED}{stem}")).is_file():
        both = open_one(merged)
        return Graphs(open_one(encoder), both, both)
    return Graphs(open_one(encoder), *(open_one(encoder.with_name(f"{name}{stem}")) for name in (FIRST, LATER)))


def open_transducer(encoder: Path, *, context: int, threads: int) -> Transducer:
    """Loads an encoder-decoder for texts and answers of up to `context` tokens each. Errors as of `load`."""
    config = json.loads(beside(encoder, "config.json").read_text(encoding="utf-8"))
    ends = config.get("eos_token_id")
    return _Transducer(
        load(encoder, threads=threads),
        context,
        int(config.get("decoder_start_token_id") or 0),
        frozenset(ends if isinstance(ends, list) else [ends]),
        onnxruntime_decoder.name(),
    )


@dataclass(slots=True)
class _Transducer:
    _graphs: Graphs | None
    _context: int
    _start: int
    _ends: frozenset[int | None]
    engine: str

    def logits(self, tokens: Sequence[int], decoder_tokens: Sequence[int]) -> F32:
        assert self._graphs is not None
        ids, answer = self._fitting(tokens), self._fitting(decoder_tokens)
        mask = np.ones_like(ids)
        found: F32 = self._graphs.begin(answer, self._graphs.encode(ids, mask), mask)[0][0]
        return found

    def generate(self, tokens: Sequence[int], limit: int) -> list[int]:
        assert self._graphs is not None
        ids, found = self._fitting(tokens), list[int]()
        mask = np.ones_like(ids)
        logits, past = self._graphs.begin(np.array([[self._start]], np.int64), self._graphs.encode(ids, mask), mask)
        while len(found) < min(limit, self._context):
            last = int(logits[0, -1].argmax())
            if last in self._ends:
                break
            found.append(last)
            logits, past = self._graphs.go_on(np.array([[last]], np.int64), mask, past)
        return found

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._graphs = None

    def _fitting(self, tokens: Sequence[int]) -> Ids:
        if not 0 < len(tokens) <= self._context:
            raise InputError(f"{len(tokens)} tokens do not fit a context of {self._context}; shorten the text")
        return np.array([tokens], np.int64)
