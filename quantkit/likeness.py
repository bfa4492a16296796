"""Whether a float32 graph is the model of its checkpoint: both are put the same texts, of two lengths in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import skeleton
from quantkit.arch import AUTO_CLASS
from quantkit.checks import parity
from quantkit.checks.parity import DECODE, PROMPTS, Ids
from quantkit.engines import onnxruntime_decoder, onnxruntime_encoder, onnxruntime_transducer
from quantkit.engines.onnxruntime_decoder import Decoder
from quantkit.formats.onnx import exported
from quantkit.values import F32, CheckResult, Snapshot

if TYPE_CHECKING:
    import torch

BEGUN = 4  # tokens of an answer that an encoder-decoder is given at once


def check(snapshot: Snapshot, path: Path, *, threads: int, what: str) -> CheckResult:
    """The graph at `path` against transformers' model of `snapshot`; prompts batched and filled up on the side that the graph
    supports, then token by token. what: which graph it is, for the summary."""
    texts = parity.texts(int(snapshot.config["vocab_size"]))
    kind = skeleton.kind(snapshot.config)
    if kind == "encoder-decoder":
        answers = _answers(onnxruntime_transducer.load(path, threads=threads), texts)
        wanted, prompts = _wanted(snapshot, texts), [BEGUN] * len(texts)
        return parity.check(answers, wanted, what=what, engine=onnxruntime_decoder.name(), prompts=prompts)
    if kind == "encoder":
        found = _states(path, texts, threads)
    else:
        found = _logits(onnxruntime_decoder.load(path, threads=threads), texts)
    return parity.check(found, _wanted(snapshot, texts), what=what, engine=onnxruntime_decoder.name())


def _wanted(snapshot: Snapshot, texts: Sequence[Ids]) -> list[F32]:
    """transformers' answer to each text alone."""
    import torch

    kind = skeleton.kind(snapshot.config)
    model = exported.load(snapshot, AUTO_CLASS[kind])

    def answer(ids: torch.Tensor) -> Any:
        if kind == "encoder":
            return model(ids).last_hidden_state
        if kind == "encoder-decoder":
            return model(input_ids=ids[:, :-DECODE], decoder_input_ids=ids[:, -DECODE:]).logits
        return model(ids, use_cache=False).logits

    with torch.no_grad():
        return [answer(torch.from_numpy(text)[None])[0].numpy() for text in texts]


def _answers(graphs: onnxruntime_transducer.Graphs, texts: Sequence[Ids]) -> list[F32]:
    """Prompts of different lengths in one batch for the encoder; of the answers BEGUN tokens at once, then token by token."""
    longest = max(PROMPTS)
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), np.int64)
    for row, length in enumerate(PROMPTS):
        ids[row, :length], mask[row, :length] = texts[row][:length], 1
    answers = np.stack([text[-DECODE:] for text in texts])
    logits, past = graphs.begin(answers[:, :BEGUN], graphs.encode(ids, mask), mask)
    found = [logits]
    for step in range(BEGUN, DECODE):
        logits, past = graphs.go_on(answers[:, step : step + 1], mask, past)
        found.append(logits)
    return list(np.concatenate(found, 1))


def _states(path: Path, texts: Sequence[Ids], threads: int) -> list[F32]:
    longest = max(map(len, texts))
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    found = onnxruntime_encoder.states(onnxruntime_decoder.session(path, threads=threads), ids, mask)
    return [states[: len(text)] for states, text in zip(found, texts, strict=True)]


def _logits(decoder: Decoder, texts: Sequence[Ids]) -> list[F32]:
    left = "position_ids" in decoder.inputs  # without them tokens are counted from the first column on
    longest, past = max(PROMPTS), decoder.empty(len(texts))
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), np.int64)
    places = [slice(longest - length, longest) if left else slice(0, length) for length in PROMPTS]
    for row, place in enumerate(places):
        ids[row, place], mask[row, place] = texts[row][: PROMPTS[row]], 1
    logits, past = decoder.run(ids, mask, past)
    found = [[logits[row, place]] for row, place in enumerate(places)]
    for step in range(DECODE):
        grown = np.concatenate([mask, np.zeros((len(texts), step + 1), np.int64)], 1)
        for row, place in enumerate(places):
            grown[row, place.stop : place.stop + step + 1] = 1
        here = np.array([[text[length + step]] for text, length in zip(texts, PROMPTS, strict=True)], np.int64)
        logits, past = decoder.run(here, grown, past)
        for row, parts in enumerate(found):
            parts.append(logits[row])
    return [np.concatenate(parts) for parts in found]
