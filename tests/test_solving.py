"""GPTQ's codes inside GGUF's own types: the same size, nearer, the same bytes on every run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import stack_experts

import quantkit
from quantkit import solving
from quantkit.errors import RecipeError
from quantkit.manifest import Manifest
from quantkit.spill import Codes

CHECKS = {
    "perplexity": {"chunks": 2},
    "divergence": {},
    "latency": {"rounds": 1, "prompt": 32, "decode": 8},
    "memory": {"contexts": []},
}


def run(source: Path, place: Path, *targets: dict[str, Any], threads: int = 1, **changes: Any) -> Manifest:
    place.mkdir(exist_ok=True)
    document = {
        "source": str(source),
        "targets": [{"format": "gguf", **target} for target in targets],
        "calibration": {"text": "builtin:python-docs", "tokens": 4096},
        "checks": CHECKS,
        **changes,
    }
    path = place / "pico.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return quantkit.convert(path, work_dir=place / "build", threads=threads)


@pytest.mark.parametrize("kind", ["Q4_0", pytest.param("Q2_K", marks=pytest.mark.slow)])
def test_the_same_types_and_size_are_nearer(kind: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    found = []
    for name, target in (
        ("search", {"type": kind, "imatrix": True}),
        ("gptq", {"type": kind, "imatrix": True, "codes": "gptq"}),
    ):
        found.append(run(pico("llama3"), tmp_path / name, target).targets[0])
    searched, solved = found
    assert {tensor.name: tensor.type for tensor in searched.tensors} == {tensor.name: tensor.type for tensor in solved.tensors}
    assert abs(searched.files[0].nbytes - solved.files[0].nbytes) <= 1024  # the metadata tells of the importance
    klds = [{check.check: check.values for check in target.checks}["divergence"]["mean_kld"] for target in found]
    assert klds[1] < klds[0]
    (said,) = [check for check in solved.checks if check.check == "calibration"]
    assert "of the search's output error in the middle matrix" in said.summary
    assert said.values["few_tokens"] == 0


def test_permuted_rows_and_bytes_on_one_and_two_threads(pico: Callable[[str], Path], tmp_path: Path) -> None:
    digests = []
    for threads in (1, 2):
        manifest = run(pico("llama"), tmp_path / str(threads), {"type": "Q4_0", "codes": "gptq"}, threads=threads, checks=False)
        digests.append(manifest.targets[0].files[0].sha256)
    assert digests[0] == digests[1]
    reader = gguf.GGUFReader(tmp_path / "1" / "build" / "pico" / manifest.targets[0].file)
    assert {tensor.tensor_type.name for tensor in reader.tensors if tensor.name.endswith("attn_q.weight")} == {"Q4_0"}


@pytest.mark.slow
def test_experts_fused_tensors_and_conv1d(pico: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("gpt2", "phi3", "mixtral"):
        manifest = run(pico(name), tmp_path / name, {"type": "Q4_0", "codes": "gptq"})
        checks = {check.check: check for check in manifest.targets[0].checks}
        assert checks["integrity"].verdict == "pass", checks["integrity"].summary


def test_every_expert_of_a_stack_is_solved_by_what_it_meets(pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = run(pico("mixtral"), tmp_path, {"type": "Q4_0", "codes": "gptq"}, checks=False)
    place = tmp_path / "build" / "pico"
    (folder,) = place.glob("*.codes")
    reader = gguf.GGUFReader(place / manifest.targets[0].file)
    (stack,) = [tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down_exps.weight"]
    codes = Codes(folder)
    names = sorted(path.stem for path in folder.glob("*layers.1.*.w2.safetensors"))
    assert len(names) == len(stack.data)
    for expert, name in enumerate(names):
        assert (stack.data[expert].reshape(-1) == codes.stored(f"{name}.weight").reshape(-1)).all()  # type: ignore[union-attr]


def test_a_checkpoint_with_stacked_experts_gives_the_same_codes(pico: Callable[[str], Path], tmp_path: Path) -> None:
    """Those that few tokens reach, and none, included."""
    made = []
    for name, folder in (("apart", pico("qwen3_moe")), ("together", stack_experts(pico("qwen3_moe"), tmp_path / "model"))):
        manifest = run(folder, tmp_path / name, {"type": "Q4_0", "codes": "gptq"}, checks=False)
        reader = gguf.GGUFReader(tmp_path / name / "build" / "pico" / manifest.targets[0].file)
        made.append({tensor.name: tensor.data.tobytes() for tensor in reader.tensors})
        stacks = list((tmp_path / name / "build" / "pico").glob("*.codes/*_exps.weight*"))
        assert bool(stacks) == (name == "together")
    assert made[0] == made[1]


def test_codes_want_a_calibration(pico: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="calibration"):
        run(pico("llama"), tmp_path, {"type": "Q4_0", "codes": "gptq"}, calibration=None)


def test_a_sequence_s_first_token_counts_for_many_and_inputs_stay_as_they_are() -> None:
    given = [np.ones((3, 2), np.float32), np.full((2, 2), 2, np.float32)]
    counted = solving.FirstCounted(given)
    assert len(counted) == 2
    assert [float(np.square(x[0]).sum() / np.square(x[1]).sum()) for x in counted] == pytest.approx([solving.SINK] * 2)
    assert [x.tolist() for x in given] == [[[1.0, 1.0]] * 3, [[2.0, 2.0]] * 2]
