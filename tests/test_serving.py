"""Whole runs that end in ONNX folders: made, shown to be the model, run in onnxruntime, published; the same bytes each time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import quantkit
from quantkit.errors import CheckFailed, InputError, RecipeError
from quantkit.manifest import Manifest

CHECKS = {
    "perplexity": {"chunks": 2, "max_ratio": 2.0},
    "divergence": {"max_mean": 1.0},
    "latency": {"rounds": 1, "prompt": 32, "decode": 8},
    "memory": {"contexts": []},
}
CALIBRATION = {"text": "builtin:python-docs", "tokens": 2048}


def run(checkpoint: Path, place: Path, *targets: dict[str, Any], threads: int = 1, **changes: Any) -> Manifest:
    document = {
        "source": str(checkpoint),
        "targets": [{"format": "onnx", **target} for target in targets],
        "checks": CHECKS,
        "publish": [{"folder": str(place / "published")}],
        **changes,
    }
    place.mkdir(exist_ok=True)
    path = place / "pico.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return quantkit.convert(path, work_dir=place / "build", threads=threads)


def digests(place: Path) -> dict[str, str]:
    folder = place / "published"
    listed = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in listed)}
    found = {name: digest for name, digest in sums.items() if "/" in name}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in found.items())
    return found


def test_a_decoder_is_published_with_what_its_runtimes_read(pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = run(pico("llama"), tmp_path, {"bits": 8}, {"bits": 4, "sym": False})
    assert manifest.verdict == "pass"
    names = ["parity", "integrity", "perplexity", "divergence", "cloze", "latency", "isa"]
    for target in manifest.targets:
        assert [check.check for check in target.checks] == names
        assert [check.check for check in target.checks if not check.seconds] == ["divergence", "cloze"]  # perplexity has it
        assert target.speed is not None
        assert target.baseline_label == "float32 graph of the same weights"
        folder = (tmp_path / "published" / target.file).parent
        assert {"model.onnx", "model.onnx.data", "genai_config.json", "config.json", "tokenizer.json"} <= {
            path.name for path in folder.iterdir()
        }
        assert (folder / "LICENSE").is_file()
    small, large = (
        len((tmp_path / "published" / target.file).with_name("model.onnx.data").read_bytes()) for target in manifest.targets
    )
    assert large < small


def test_codes_of_the_engine_and_importance(pico: Callable[[str], Path], tmp_path: Path) -> None:
    targets = {"bits": 4, "sym": False}, {"bits": 4, "sym": False, "imatrix": True}, {"bits": 4, "sym": False, "codes": "gptq"}
    manifest = run(pico("llama"), tmp_path, *targets, calibration=CALIBRATION)
    plain, weighed, solved = (
        {check.check: check.values for check in target.checks}["divergence"]["mean_kld"] for target in manifest.targets
    )
    assert solved < plain
    assert len({plain, weighed, solved}) == 3


@pytest.mark.parametrize("target", [{"bits": 4, "codes": "gptq"}, {"bits": 8, "imatrix": True}])
def test_bytes_do_not_depend_on_threads_or_run(target: dict[str, Any], pico: Callable[[str], Path], tmp_path: Path) -> None:
    found = []
    for threads in (1, 2):
        run(pico("llama"), tmp_path / str(threads), target, threads=threads, calibration=CALIBRATION, checks=False)
        found.append(digests(tmp_path / str(threads)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "layout", ["plain", *(pytest.param(each, marks=pytest.mark.slow) for each in ("sentence-transformers", "transformers.js"))]
)
def test_an_encoder_in_every_layout(layout: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    checks = {**CHECKS, "embedding": {"min_cosine": 0.9}}
    del checks["divergence"]
    checks["perplexity"] = {"chunks": 2}
    given: Any = checks if layout == "plain" else False
    manifest = run(pico("bert"), tmp_path, {"imatrix": True, "layout": layout}, calibration=CALIBRATION, checks=given)
    assert manifest.verdict == ("pass" if layout == "plain" else "unchecked")
    path = tmp_path / "published" / manifest.targets[0].file
    assert path.name == {"plain": "model.onnx", "sentence-transformers": "model_qint8_avx2.onnx"}.get(
        layout, "model_quantized.onnx"
    )
    folder = path.parent if layout == "plain" else path.parent.parent
    assert json.loads((folder / "config.json").read_text())["pooling"] == "mean"
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    kinds = {node.op_type for node in ir.load(path).graph}
    assert {"MatMulInteger", "DynamicQuantizeLinear", "GatherBlockQuantized"} <= kinds
    assert not [node for node in ir.load(path).graph if node.metadata_props]  # nothing of this machine's paths


@pytest.mark.slow
def test_an_encoder_decoder_keeps_one_copy_of_its_weights(pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = run(pico("t5"), tmp_path, {"imatrix": True}, calibration=CALIBRATION)
    assert manifest.verdict == "pass"
    folder = (tmp_path / "published" / manifest.targets[0].file).parent
    names = {path.name for path in folder.glob("*.onnx*")}
    assert names == {"encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx", "model.onnx.data"}
    assert {tensor.type for tensor in manifest.targets[0].tensors if "DenseReluDense.wo" in tensor.name} == {"F32"}
    inputs = {value.name for value in ir.load(folder / "decoder_with_past_model.onnx").graph.inputs}
    assert {"past_key_values.0.decoder.key", "past_key_values.1.encoder.value", "encoder_attention_mask"} <= inputs


@pytest.mark.slow
def test_transformers_js_gets_both_decoders_in_one_graph(pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = run(pico("marian"), tmp_path, {"layout": "transformers.js"}, {"layout": "plain"})
    assert manifest.verdict == "pass"
    folder = (tmp_path / "published" / manifest.targets[0].file).parent
    assert {path.name for path in folder.iterdir()} == {"encoder_model_quantized.onnx", "decoder_model_merged_quantized.onnx"}
    graph = ir.load(folder / "decoder_model_merged_quantized.onnx").graph
    assert {"use_cache_branch", "encoder_hidden_states", "past_key_values.1.encoder.value"} <= {
        str(value.name) for value in graph.inputs
    }
    assert [node.op_type for node in graph] == ["If"]
    merged, plain = (
        {check.check: check.values for check in target.checks}["divergence"]["mean_kld"] for target in manifest.targets
    )
    assert merged == pytest.approx(plain, rel=1e-3)


def test_one_table_serves_head_and_embedding(pico: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = run(pico("llama"), tmp_path, {"bits": 8}, checks=False)
    graph = ir.load(tmp_path / "published" / manifest.targets[0].file).graph
    (gather,) = [node for node in graph if node.op_type == "GatherBlockQuantized"]
    (head,) = [node for node in graph if node.op_type == "MatMulNBits" and node.outputs[0].name == "logits"]
    assert gather.inputs[2] is head.inputs[2]
    assert gather.inputs[0].producer().inputs[0] is head.inputs[1]  # type: ignore[union-attr]
    assert all(node.attributes.get_int("accuracy_level") == 4 for node in graph if node.op_type == "MatMulNBits")


def test_rules_by_name(pico: Callable[[str], Path], tmp_path: Path) -> None:
    rules = [{"match": "*.mlp.down_proj", "bits": 8}, {"match": "*o_proj*", "skip": True}]
    manifest = run(pico("llama"), tmp_path, {"bits": 4, "rules": rules}, checks=False)
    types = {tensor.name: tensor.type for tensor in manifest.targets[0].tensors}
    assert types["model.layers.0.mlp.down_proj.MatMul.weight"] == "INT8B32"
    assert types["model.layers.0.attn.o_proj.MatMul.weight"] == "F32"
    assert types["model.layers.0.mlp.up_proj.MatMul.weight"] == "INT4B32"


def test_what_cannot_be_is_refused(pico: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rules that match no matrix: 'nothing'; names are like"):
        run(pico("llama"), tmp_path, {"rules": [{"match": "nothing", "skip": True}]}, checks=False)
    with pytest.raises(RecipeError, match="scheme: dynamic has weights of 8 bits"):
        run(pico("llama"), tmp_path, {"bits": 4, "scheme": "dynamic"}, checks=False)
    with pytest.raises(InputError, match="no GGUF form here; use format: onnx"):
        quantkit.plan(str(pico("roberta")), format="gguf", type="Q8_0")


def test_a_failed_gate_publishes_nothing(pico: Callable[[str], Path], tmp_path: Path) -> None:
    checks = {**CHECKS, "divergence": {"max_mean": 1e-9}}
    with pytest.raises(CheckFailed, match="divergence"):
        run(pico("llama"), tmp_path, {"bits": 4}, checks=checks)
    assert not (tmp_path / "published").exists()
    assert (tmp_path / "build" / "pico" / "report.html").is_file()
    assert not list((tmp_path / "build" / "pico").glob("*.partial"))


@pytest.mark.slow
def test_what_costs_most_stays_in_float_where_a_gate_failed(pico: Callable[[str], Path], tmp_path: Path) -> None:
    checks = {**CHECKS, "divergence": {"max_mean": 1e-9}}
    means = []
    for spare in (0, 1.5):
        place = tmp_path / str(spare)
        with pytest.raises(CheckFailed, match="divergence"):
            run(pico("llama"), place, {"bits": 4, "imatrix": True, "spare": spare}, checks=checks, calibration=CALIBRATION)
        target = Manifest.read(place / "build" / "pico" / "manifest.json").targets[0]
        means.append({check.check: check.values for check in target.checks}["divergence"]["mean_kld"])
    (said,) = [check.summary for check in target.checks if check.check == "sensitivity"]
    assert said.startswith("a gate failed, so these stay in float32")
    assert means[1] < means[0]
    assert {tensor.type for tensor in target.tensors if len(tensor.shape) == 2} == {"F32", "INT4B32"}


@pytest.mark.slow
def test_a_fast_prompt_is_chosen_by_measurement(smollm2: str, tmp_path: Path) -> None:
    target = {"bits": 8, "sym": False, "imatrix": True, "scheme": "fast-prefill", "checks": {"perplexity": "report"}}
    checks = {**CHECKS, "divergence": {"max_mean": 0.2}}
    manifest = run(Path("."), tmp_path, target, source=smollm2, calibration={"tokens": 4096}, checks=checks)
    costs = {check.check: check.values for check in manifest.targets[0].checks}["sensitivity"]
    assert max(costs, key=costs.__getitem__) == "model.layers.*.mlp.down_proj.MatMul.weight"
    assert {tensor.type for tensor in manifest.targets[0].tensors} >= {"INT7S", "INT8B32Z"}


@pytest.mark.slow
def test_onnxruntime_genai_generates_what_our_runner_does(smollm2: str, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    from quantkit.engines import onnxruntime_decoder

    manifest = run(Path("."), tmp_path, {"bits": 8}, source=smollm2, checks=False)
    path = tmp_path / "published" / manifest.targets[0].file
    model = genai.Model(str(path.parent))
    prompt = [int(token) for token in genai.Tokenizer(model).encode("The capital of France is")]
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + 32, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    assert onnxruntime_decoder.open_runner(path, context=512, threads=1).generate(prompt, 32) == theirs
