"""Graphs of every architecture are the model: parity with transformers; no weight is read in a plan, and no network tried."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import DECODERS, ENCODERS, TRANSDUCERS, UNMAPPED

from quantkit import arch, likeness, serving, source
from quantkit.errors import ResourceError, UnsupportedError
from quantkit.formats.onnx import builder, graphs, layout, writer
from quantkit.formats.onnx.graph import Graph
from quantkit.progress import silent
from quantkit.targets import OnnxTarget
from quantkit.values import CheckResult, Snapshot

BUILT = ("gemma", "smollm3", "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3-long", "granite")
REFUSED = ("qwen3_moe", "mixtral")
UNMAPPED_DECODERS = [name for name, settings in UNMAPPED.items() if arch.find(settings).kind == "decoder"]
EXPORTED = [name for name in (*DECODERS, *UNMAPPED_DECODERS) if name not in (*BUILT, *REFUSED)]
ENCODING = [*ENCODERS, *(name for name, settings in UNMAPPED.items() if arch.find(settings).kind == "encoder")]
ANSWERING = [*TRANSDUCERS, *(name for name, settings in UNMAPPED.items() if arch.find(settings).kind == "encoder-decoder")]
QUICK = ("gpt2", "bert", "roberta")


def slow(names: list[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def parity(
    snapshot: Snapshot, place: Path, target: OnnxTarget = serving.FLOAT, made: Sequence[Graph] | None = None
) -> CheckResult:
    plan = layout.plan(target, "", snapshot, "model", made)
    artefact = writer.write(plan, snapshot, place, importance={}, solved=None, threads=1, progress=silent, made=made)
    assert plan.nbytes == sum(file.nbytes for file in artefact.files[: len(plan.files)])
    return likeness.check(snapshot, artefact.path, threads=1, what="the graph")


@pytest.mark.parametrize("name", BUILT)
def test_decoders_of_the_builder(name: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    snapshot = source.describe(str(pico(name)))
    if name == "phi3":  # whose pico checkpoint looks to the builder like one with a long context
        snapshot = replace(snapshot, config={**snapshot.config, "original_max_position_embeddings": 2048})
    found = parity(snapshot, tmp_path)
    assert found.verdict == "pass", found.summary
    assert found.values["decode"] < 1e-4
    assert list(tmp_path.rglob(builder.SETTINGS))
    assert snapshot.config["model_type"] in builder.KNOWN


@pytest.mark.parametrize("name", slow([*EXPORTED, *ENCODING, *ANSWERING]))
def test_models_of_the_exporter(name: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    snapshot = source.describe(str(pico(name)))
    made = None if name in QUICK else graphs.build(snapshot)  # else the plan has a graph of its own, without weights
    found = parity(snapshot, tmp_path, made=made)
    assert found.verdict == "pass", found.summary
    assert found.values["decode"] < 1e-4
    assert snapshot.config["model_type"] not in builder.KNOWN


@pytest.mark.parametrize("name", REFUSED)
def test_experts_are_refused_with_the_reason(name: str, pico: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match="transformers' exporter has no graph for "):
        graphs.build(source.describe(str(pico(name))))


def test_what_the_exporter_cannot_hold_is_refused(pico: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**6))
    with pytest.raises(ResourceError, match="gpt2 is exported by transformers, which holds it in float32: about 0 GB"):
        graphs.build(source.describe(str(pico("gpt2"))))


def test_a_plan_reads_no_weight(pico: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.source.files import TensorFiles

    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    plan = layout.plan(OnnxTarget(format="onnx"), "", source.describe(str(pico("llama3"))), "model")
    assert {row.type for row in plan.rows} == {"INT8B32", "F32"}


def test_nothing_tries_the_network(pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def refuse(_: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: tried.append(given) or [])
    for name in ("llama", "bert"):
        (tmp_path / name).mkdir()
        assert parity(source.describe(str(pico(name))), tmp_path / name, OnnxTarget(format="onnx")) is not None
    assert tried == []
