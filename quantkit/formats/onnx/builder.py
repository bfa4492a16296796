"""Graphs of decoders by onnxruntime-genai's builder: one for prefill and decode, grouped-query attention, its names.

The builder is a library here: it gets a model of recorded parameters, and its graph is taken before it writes one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import modules, skeleton
from quantkit.errors import UnsupportedError
from quantkit.formats.carried import carried
from quantkit.formats.onnx import recorded
from quantkit.formats.onnx.graph import Graph
from quantkit.formats.onnx.recorded import Deferred
from quantkit.values import Snapshot

if TYPE_CHECKING:
    import onnx_ir as ir

SETTINGS = "genai_config.json"
WRONG = ("OlmoForCausalLM", "PhiForCausalLM")
"""Whose graphs of onnxruntime-genai 0.18 part from transformers 5's models, by 0.9 and 0.003 of the logits' spread."""
KNOWN = frozenset({"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})
"""Of quantkit's decoders, by model_type, those that it makes: for a forecast, `build` finds out."""
CHUNK = 512  # tokens of a prompt that onnxruntime-genai runs at once
_OPTIONS = ["windowed_kv_cache=false"]  # whose cache only onnxruntime-genai can begin
_OFFLINE = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}


def build(snapshot: Snapshot) -> Graph:
    """The float32 graph of a decoder. Raises UnsupportedError for one that the builder does not know, or gets wrong."""
    if _name(snapshot) in WRONG:
        raise UnsupportedError(f"onnxruntime-genai's builder makes another model of {_name(snapshot)}")
    with _environment(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as place:
        return _build(snapshot, Path(place))


def _build(snapshot: Snapshot, place: Path) -> Graph:
    library = importlib.import_module("onnxruntime_genai.models.builder")
    folder = place / "source"
    folder.mkdir()
    for name, text in (carried(snapshot) if snapshot.tokenizer else _without_tokenizer(snapshot)).items():
        (folder / name).write_text(text, encoding="utf-8")
    view = modules.view(snapshot.config, snapshot.weights)
    model = skeleton.build(snapshot.config, "AutoModelForCausalLM")
    recorded.record(model, view)
    where = {"model_name": "", "input_path": str(folder), "output_dir": str(place / "out"), "precision": "fp32"}
    where |= {"execution_provider": "cpu", "cache_dir": str(place / "cache")}
    options = library.parse_extra_options(**where, extra_options=_OPTIONS)
    _fit_rope(options["hf_details"]["hf_config"])
    taken: list[Any] = []
    ours = {
        "load_weights": lambda self, path: model,  # noqa: ARG005
        "save_model": lambda self, folder: taken.append(self.model),  # noqa: ARG005
        "has_lm_head": lambda self, module: module is model.get_output_embeddings(),  # noqa: ARG005  # theirs goes by its size
    }
    before = {name: getattr(library.Model, name) for name in ours}
    try:
        for name, method in ours.items():
            setattr(library.Model, name, method)
        library.create_model(**where, **options)
    except NotImplementedError as error:
        raise UnsupportedError(f"onnxruntime-genai's builder has no graph for {_name(snapshot)}") from error
    finally:
        for name, method in before.items():
            setattr(library.Model, name, method)
    graph: ir.Model = taken[0]
    graph.graph.sort()
    for node in graph.graph:  # inputs left out are values without a name, which nothing else takes for absent
        for index, value in enumerate(node.inputs):
            if value is not None and not value.name:
                node.replace_input_with(index, None)
    initializers = graph.graph.initializers.items()
    deferred = {name: recorded.of(value.const_value) or _held(value.const_value) for name, value in initializers}
    deferred |= _local_rotary(deferred, snapshot.config)
    settings = _chunked((place / "out" / SETTINGS).read_text(encoding="utf-8"))
    return Graph("model", "decoder", graph, deferred, {SETTINGS: settings})


def _chunked(settings: str) -> str:
    """A prompt goes in chunks: the graph gives logits after every token, which of 8,192 tokens are gigabytes."""
    found = json.loads(settings)
    found["search"]["chunk_size"] = CHUNK
    return json.dumps(found, indent=4)


def _without_tokenizer(snapshot: Snapshot) -> dict[str, str]:
    """What the builder reads of a checkpoint that can be planned and not run: it insists on a tokenizer."""
    from tokenizers import Tokenizer, models

    nothing = Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).to_str()
    settings = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    return {"config.json": json.dumps(dict(snapshot.config)), "tokenizer.json": nothing, "tokenizer_config.json": settings}


def _name(snapshot: Snapshot) -> str:
    return ", ".join(snapshot.config.get("architectures") or [str(snapshot.config.get("model_type"))])


def _held(tensor: Any) -> Deferred:
    return recorded.of_values(tensor.numpy())


def _fit_rope(config: Any) -> None:
    """Rotary settings of transformers 5 where the builder reads those of 4: Gemma 3's by kind of layer, Phi 3's."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    if "full_attention" in found and "sliding_attention" in found:
        config.rope_local_base_freq = found["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(found["full_attention"])
    elif "rope_type" in found:
        config.rope_parameters = {"type": found["rope_type"], **found}


def _local_rotary(deferred: Mapping[str, Deferred], config: Mapping[str, Any]) -> dict[str, Deferred]:
    """Gemma 3's rotary tables of sliding layers, which the builder stretches as it does those of the others."""
    if "cos_cache_local" not in deferred:
        return {}
    length, half = deferred["cos_cache_local"].shape
    settings = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    theta = float(settings.get("rope_theta") or config["rope_local_base_freq"])
    frequencies = theta ** -(np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.outer(np.arange(length, dtype=np.float32), frequencies.astype(np.float32))
    tables = {"cos_cache_local": np.cos(angles), "sin_cache_local": np.sin(angles)}
    return {name: recorded.of_values(values) for name, values in tables.items()}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """No network, no telemetry; the builder's import sets up everybody's logging, which is put back."""
    before, root = {name: os.environ.get(name) for name in _OFFLINE}, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    os.environ.update(_OFFLINE)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
