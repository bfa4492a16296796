"""onnxruntime on decoders with a cache of keys and values under the ecosystem's names: past_key_values.N.key, present.N.key."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError, UnresolvedError
from quantkit.values import F32, Runner

Ids = NDArray[np.int64]
Cache = Mapping[str, Any]  # "past_key_values.N.key" -> OrtValue


def available() -> bool:
    return find_spec("onnxruntime") is not None


def name() -> str:
    """The engine with its version, as every figure carries it."""
    return f"onnxruntime {version('onnxruntime')}"


def session(graph: Path | bytes, *, threads: int) -> Any:
    """An onnxruntime session of a graph, a file or protobuf, on the CPU. Raises UnresolvedError where it does not load."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        given = graph if isinstance(graph, bytes) else str(graph)
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what = graph if isinstance(graph, Path) else "the graph"
        raise UnresolvedError(f"onnxruntime does not load {what}: {error}") from error


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's session and what its inputs are called. cache: input -> (heads, width) of the keys or values of one layer."""

    session: Any
    cache: Mapping[str, tuple[int, int]]
    inputs: frozenset[str]

    def empty(self, batch: int) -> Cache:
        from onnxruntime import OrtValue

        shapes = {name: (batch, heads, 0, width) for name, (heads, width) in self.cache.items()}
        return {name: OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for name, shape in shapes.items()}

    def run(self, ids: Ids, mask: Ids, past: Cache) -> tuple[F32, Cache]:
        """Logits (batch, length, vocabulary) after each of `ids` (batch, length) and the cache with them. mask: (batch, past
        length + length), 0 where there is no token."""
        from onnxruntime import OrtValue

        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self.inputs:
            given["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        fed = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values)) for name, values in given.items()}
        outputs = [output.name for output in self.session.get_outputs()]
        found = dict(zip(outputs, self.session.run_with_ort_values(outputs, fed | dict(past)), strict=True))
        logits: F32 = found.pop("logits").numpy()
        return logits, {name.replace("present", "past_key_values", 1): value for name, value in found.items()}


def load(path: Path, *, threads: int) -> Decoder:
    """Errors as of `session`; InputError for a graph that is no decoder's."""
    opened = session(path, threads=threads)
    inputs = {value.name: value.shape for value in opened.get_inputs()}
    cache = {name: (shape[1], shape[3]) for name, shape in inputs.items() if name.startswith("past_key_values.")}
    if "input_ids" not in inputs or not cache:
        raise InputError(f"{path} is no decoder with a cache: its inputs are {', '.join(inputs)}")
    sizes = {name: (heads, _width(path, width)) for name, (heads, width) in cache.items()}
    return Decoder(opened, sizes, frozenset(inputs))


def _width(path: Path, stated: int | str) -> int:
    """The width of a head; where the graph leaves it open, as genai_config.json says."""
    if isinstance(stated, int):
        return stated
    settings = json.loads(beside(path, "genai_config.json").read_text(encoding="utf-8"))
    return int(settings["model"]["decoder"]["head_size"])


def open_runner(path: Path, *, context: int, threads: int) -> Runner:
    """Loads a decoder for texts of up to `context` tokens. Errors as of `load`."""
    return _Runner(load(path, threads=threads), context, _ends(path), name())


def beside(graph: Path, name: str) -> Path:
    """A document of a graph's folder, of which some layouts put graphs into a folder below."""
    return next((path for path in (graph.parent / name, graph.parent.parent / name) if path.is_file()), graph.parent / name)


def vocabulary(graph: Path) -> int:
    """How many tokens a graph's model has, as the config.json of its folder says."""
    return int(json.loads(beside(graph, "config.json").read_text(encoding="utf-8"))["vocab_size"])


def _ends(graph: Path) -> frozenset[int]:
    """Tokens that end a generation."""
    for file in ("generation_config.json", "config.json"):
        path = beside(graph, file)
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    return frozenset()


@dataclass(slots=True)
class _Runner:
    _decoder: Decoder | None
    _context: int
    _ends: frozenset[int]
    engine: str

    def logits(self, tokens: Sequence[int]) -> F32:
        ids = self._fitting(tokens)
        assert self._decoder is not None
        found: F32 = self._decoder.run(ids, np.ones_like(ids), self._decoder.empty(1))[0][0]
        return found

    def generate(self, tokens: Sequence[int], limit: int) -> list[int]:
        assert self._decoder is not None
        ids, past, found = self._fitting(tokens), self._decoder.empty(1), list[int]()
        seen = 0
        while len(found) < limit and seen + ids.shape[1] <= self._context:
            seen += ids.shape[1]
            logits, past = self._decoder.run(ids, np.ones((1, seen), np.int64), past)
            last = int(logits[0, -1].argmax())
            if last in self._ends:
                break
            found.append(last)
            ids = np.array([[last]], np.int64)
        return found

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._decoder = None

    def _fitting(self, tokens: Sequence[int]) -> Ids:
        if not 0 < len(tokens) <= self._context:
            raise InputError(f"{len(tokens)} tokens do not fit a context of {self._context}; shorten the text")
        return np.array([tokens], np.int64)
