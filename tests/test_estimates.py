"""What a plan says of memory and disk: what must be in it, by recipes that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_pico

from quantkit import baseline, estimates, footprint_run, pipeline, source
from quantkit.planning import Needs
from quantkit.recipe import Recipe

GGUF = {"format": "gguf", "type": "Q8_0"}
GPTQ = {"format": "gptq", "bits": 4, "group": 32}
CALIBRATION = {"text": "builtin:python-docs", "tokens": 512, "length": 128}


@pytest.fixture
def needs(pico: Callable[[str], Path], tmp_path: Path) -> Callable[..., Needs]:
    """needs(target, ..., model=, calibration=, checks=) of a run of the llama pico, or of a folder."""

    def of(*targets: dict[str, Any], model: Path | None = None, **further: Any) -> Needs:
        snapshot = source.describe(str(model or pico("llama")))
        recipe = Recipe.model_validate({"source": snapshot.uri, "targets": targets, "checks": False, **further})
        plans = [pipeline.plan_target(target, "", snapshot, "model") for target in recipe.targets]
        original = baseline.plan(snapshot, tmp_path) if GGUF in targets else None
        return estimates.estimate(recipe, snapshot, plans, original, 1, tmp_path)

    return of


def test_a_conversion_holds_its_files_and_no_torch(needs: Callable[..., Needs]) -> None:
    found = needs(GGUF)
    assert found.memory < footprint_run.RUN_PROCESS + footprint_run.TORCH_LIBRARIES
    assert needs(GGUF, checks={"perplexity": {"chunks": 2}}).memory > found.memory + footprint_run.TORCH_LIBRARIES


def test_codes_lie_beside_the_checkpoint_that_is_made_of_them(needs: Callable[..., Needs]) -> None:
    one, both = needs(GPTQ, calibration=CALIBRATION), needs(GPTQ, GGUF, calibration=CALIBRATION)
    assert 0 < both.disk - one.disk == needs(GGUF).disk
    more = needs(GPTQ, calibration=CALIBRATION | {"tokens": 1 << 17})
    assert more.disk > one.disk  # hidden states between layers are more than what is made of so small a model
    assert more.memory > one.memory


def test_of_two_unquantised_models_one_is_there_at_a_time(needs: Callable[..., Needs]) -> None:
    checks = {"perplexity": {"chunks": 2}}
    checked, plain = needs(GGUF, checks=checks), needs(GGUF)
    other = {"format": "gguf", "type": "Q4_0"}
    assert needs(GGUF, other, checks=checks).disk - needs(GGUF, other).disk == checked.disk - plain.disk


def test_weights_are_held_by_graphs_of_transformers_exporter_alone(needs: Callable[..., Needs], tmp_path: Path) -> None:
    onnx, width = {"format": "onnx", "bits": 8}, 16384
    matrix, process = 256 * width, footprint_run.process_memory(512, torch=True, onnx=True) + footprint_run.GRAPH
    built = make_pico("llama", tmp_path / "llama", intermediate_size=width)
    assert needs(onnx, model=built).memory < process + 8 * matrix, "its largest, in float32 and as codes"
    exported = make_pico("gpt2", tmp_path / "gpt2", n_inner=width)
    assert needs(onnx, model=exported).memory > process + 4 * 4 * matrix, "four matrices"


def test_small_blocks_that_threads_have_freed_count_until_all_have_come() -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1000,
        "num_attention_heads": 8,
    }  # fmt: skip
    short = footprint_run.gptq_memory(config, 8192, 512, narrow=False)["waiting or solving"]
    long = footprint_run.gptq_memory(config, 8192, 4096, narrow=False)["waiting or solving"]
    assert short - long > 4 * 8192 * 3 * 512  # what is freed in blocks beyond POOLED goes back at once


def test_tensors_that_are_encoded_ahead_are_counted_up_to_their_limit() -> None:
    from quantkit.values import Row

    rows = [Row(str(index), None, (10, 10), "F32", "F32", "F32", "", size) for index, size in enumerate((10, 10, 10, 50, 5))]
    assert footprint_run.conversion_memory(rows, slab_weights=1, threads=1, ahead=25)["encoded tensors"] == 75
    assert footprint_run.conversion_memory(rows, slab_weights=1, threads=1)["encoded tensors"] == 60
