"""Whole runs into which a fault is put: a named check or a refusal catches each, and nothing is published."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx_ir as ir
import pytest
from checkpoints import INDEX, shard
from safetensors.numpy import load_file, save_file

import quantkit
from quantkit import cli, locking, pipeline, provenance, publishing, recipe_file, recipe_lock, sealing, workspace
from quantkit.codecs import gguf_kv
from quantkit.codecs.gguf_kv import KeyValue
from quantkit.errors import CheckFailed, InputError, QuantkitError, SourceError
from quantkit.formats.gguf import layout
from quantkit.formats.gguf import writer as gguf_writer
from quantkit.formats.gptq import writer as gptq_writer
from quantkit.formats.onnx import writer as onnx_writer
from quantkit.job import Options
from quantkit.manifest import Manifest
from quantkit.progress import silent
from quantkit.provenance import Asked
from quantkit.values import Written

RECIPE = """\
source: {source}
targets: [{{{target}}}]
calibration: {{tokens: 1024, text: "builtin:python-docs"}}
checks:
  perplexity: {{chunks: 2, max_ratio: 1.2}}
  divergence: {{max_mean: 0.05}}
  latency: {{rounds: 1, prompt: 32, decode: 8}}
  memory: {{contexts: []}}
publish: [{{folder: published}}]
"""
TARGETS = {"gguf": "format: gguf, type: Q8_0", "gptq": "format: gptq, bits: 4, group: 64", "onnx": "format: onnx, bits: 8"}
Damage = Callable[[Path], None]


def without_calibration(text: str) -> str:
    return "".join(line for line in text.splitlines(True) if not line.startswith("calibration"))


@pytest.fixture
def run(pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manifest]:
    """run("gguf", ...) makes that target of the pico Llama, or of another `source`, and publishes into tmp_path."""
    monkeypatch.chdir(tmp_path)

    def start(kind: str, source: Path | None = None) -> Manifest:
        text = RECIPE.format(source=source or pico("llama"), target=TARGETS[kind])
        text = text if kind == "gptq" else without_calibration(text)
        (tmp_path / "fault.yaml").write_text(text)
        return quantkit.convert(tmp_path / "fault.yaml", work_dir=tmp_path / "build", threads=1)

    return start


@pytest.fixture
def copy(pico: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico("llama"), tmp_path / "model"))


def damaged(monkeypatch: pytest.MonkeyPatch, writer: Any, damage: Damage) -> None:
    """After the target is written, and before anything looks at it: its digests are those of the damaged files."""
    write = writer.write

    def write_badly(plan: Any, *given: Any, **settings: Any) -> Any:
        artefact = write(plan, *given, **settings)
        if not plan.digest:  # of the unquantised graph, which a run makes for itself
            return artefact
        if plan.target.format == "gguf" and plan.target.type != "Q8_0":
            return artefact
        damage(artefact.path)
        left = [file.path for file in artefact.files if file.path.is_file()]
        return replace(artefact, files=tuple(Written(path, path.stat().st_size, workspace.digest(path)) for path in left))

    monkeypatch.setattr(writer, "write", write_badly)


def is_caught(run: Callable[..., Manifest], kind: str, check: str, said: str, place: Path) -> None:
    """By this check, with exit code 3 and a manifest that says so; nothing is published."""
    with pytest.raises(CheckFailed, match=rf"{check}: .*{said}") as caught:
        run(kind)
    assert caught.value.exit_code == 3
    (target,) = Manifest.read(place / "build" / "fault" / "manifest.json").targets
    assert check in [each.check for each in target.checks if each.verdict == "fail"]
    assert not (place / "published").exists()


def rewritten(path: Path, change: Callable[[KeyValue], KeyValue | None], keep: Callable[[str], bool] = lambda _: True) -> None:
    """The GGUF with other metadata, and with the tensors that are kept."""
    pairs, reader = gguf_kv.read(path).pairs, gguf.GGUFReader(path)
    temporary = path.with_suffix(".new")
    writer = gguf.GGUFWriter(temporary, "llama")
    changed = (change(pair) for pair in pairs if pair.key != "general.architecture")
    gguf_kv.write(writer, [pair for pair in changed if pair is not None])
    for tensor in reader.tensors:
        if keep(tensor.name):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)


def with_pair(key: str, change: Callable[[Any], Any]) -> Damage:
    def damage(path: Path) -> None:
        rewritten(path, lambda pair: replace(pair, value=change(pair.value)) if pair.key == key else pair)

    return damage


def without_pair(key: str) -> Damage:
    return lambda path: rewritten(path, lambda pair: None if pair.key == key else pair)


def without_tensor(name: str) -> Damage:
    return lambda path: rewritten(path, lambda pair: pair, lambda each: each != name)


def with_tensors(pick: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Damage:
    """Packed rows (rows, bytes) of the tensors whose name has `pick` in it, changed in place."""

    def damage(path: Path) -> None:
        for tensor in gguf.GGUFReader(path, "r+").tensors:
            if pick in tensor.name:
                tensor.data[...] = change(np.array(tensor.data))

    return damage


def turned(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A square matrix of Q8_0 with rows and columns exchanged."""
    whole = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    return gguf.quants.quantize(np.ascontiguousarray(whole.T), gguf.GGMLQuantizationType.Q8_0)


def unpermuted(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of Q or K with the halves of every head together, as transformers has them and llama.cpp does not."""
    heads = len(packed) // 64
    return packed.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(packed.shape)


def nan_scale(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    packed[3, :2] = np.array([np.nan], np.float16).view(np.uint8)
    return packed


def swapped(values: list[Any]) -> list[Any]:
    return [*values[:300], values[301], values[300], *values[302:]]


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


GGUF: dict[str, tuple[Damage, str, str]] = {
    "swapped tokenizer": (with_pair("tokenizer.ggml.tokens", swapped), "integrity", r"tokenizer\.ggml\.tokens: .*, planned"),
    "swapped merges": (with_pair("tokenizer.ggml.merges", lambda held: held[::-1]), "integrity", r"tokenizer\.ggml\.merges: "),
    "wrong chat template": (
        with_pair("tokenizer.chat_template", lambda held: held.replace("content", "role")), "integrity", "chat_template: ",
    ),
    "no chat template": (without_pair("tokenizer.chat_template"), "integrity", "chat_template: planned, not in the metadata"),
    "zeroed layer": (with_tensors("blk.1.", np.zeros_like), "integrity", r"blk\.1\..*: relative error 1"),
    "NaN scale": (with_tensors("blk.0.ffn_down", nan_scale), "integrity", "row 3 decodes to NaN or infinity"),
    "transposed Q": (with_tensors("blk.0.attn_q", turned), "integrity", r"blk\.0\.attn_q\.weight: relative error"),
    "unpermuted K": (with_tensors("blk.1.attn_k", unpermuted), "integrity", r"blk\.1\.attn_k\.weight: relative error"),
    "wrong rope base": (with_pair("llama.rope.freq_base", lambda _: 1e6), "integrity", r"freq_base: 1000000\.0, planned 1"),
    "wrong context": (with_pair("llama.context_length", lambda _: 128), "integrity", "context_length: 128, planned 2048"),
    "wrong end": (with_pair("tokenizer.ggml.eos_token_id", lambda held: held - 1), "integrity", "eos_token_id: "),
    "missing tensor": (without_tensor("blk.1.ffn_up.weight"), "integrity", "ffn_up.weight: planned, not in the file"),
    "truncated tail": (cut, "integrity", "gguf-py does not read the file"),
    "another licence": (with_pair("general.license", lambda _: "mit"), "integrity", r"license: 'mit', planned 'apache"),
}  # fmt: skip
QUICK = ("wrong chat template", "NaN scale", "missing tensor")


@pytest.mark.parametrize("fault", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in GGUF])
def test_a_gguf_with_a_fault(run: Callable[..., Manifest], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, check, said = GGUF[fault]
    damaged(monkeypatch, gguf_writer, damage)
    is_caught(run, "gguf", check, said, tmp_path)


PLANNED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "swapped tokenizer": ("tokenizer.ggml.tokens", swapped, "tokenizer"),
    "wrong norm": ("llama.attention.layer_norm_rms_epsilon", lambda _: 5.0, "divergence"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANNED)
def test_metadata_that_is_wrong_from_the_plan_on(
    run: Callable[..., Manifest], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds what was planned, so that integrity is content: the engine's own behaviour tells."""
    key, change, check = PLANNED[fault]
    metadata = layout.metadata

    def plan_badly(target: Any, digest: str, snapshot: Any) -> list[KeyValue]:
        pairs = metadata(target, digest, snapshot)
        wrong = target.type == "Q8_0"
        return [replace(pair, value=change(pair.value)) if wrong and pair.key == key else pair for pair in pairs]

    monkeypatch.setattr(layout, "metadata", plan_badly)
    is_caught(run, "gguf", check, "", tmp_path)


def tensors(pick: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]) -> Damage:
    """Of a folder of safetensors: those whose name has `pick` in it; None removes one."""

    def damage(path: Path) -> None:
        held = load_file(path)
        found = {name: change(value) if pick in name else value for name, value in held.items()}
        save_file({name: value for name, value in found.items() if value is not None}, path, {"format": "pt"})

    return damage


def document(name: str, change: Callable[[str], str | None]) -> Damage:
    """Of a folder: a text in it; None removes it."""

    def damage(path: Path) -> None:
        text = change((path.parent / name).read_text(encoding="utf-8"))
        (path.parent / name).unlink()
        if text is not None:
            (path.parent / name).write_text(text, encoding="utf-8")

    return damage


def rope(text: str) -> str:
    config = json.loads(text)
    config["rope_parameters"]["rope_theta"] = 1e6
    return json.dumps(config)


def other_ids(text: str) -> str:
    definition = json.loads(text)
    vocabulary = definition["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return json.dumps(definition)


DOCUMENTS: dict[str, tuple[Damage, str, str]] = {
    "wrong rope base": (document("config.json", rope), "integrity", r"config\.json: rope_parameters is .*, the source says"),
    "swapped tokenizer": (document("tokenizer.json", other_ids), "integrity", r"tokenizer\.json: model is .*, the source says"),
    "wrong chat template": (
        document("tokenizer_config.json", lambda text: text.replace("content", "role")), "integrity", "another chat_template",
    ),
    "licence removed": (document("LICENSE", lambda _: None), "integrity", "LICENSE: gone, the source's licence is to go"),
    "other end": (
        document("generation_config.json", lambda text: text.replace('"eos_token_id": ', '"eos_token_id": 1')), "integrity",
        r"generation_config\.json: eos_token_id is",
    ),
}  # fmt: skip
GPTQ = DOCUMENTS | {
    "NaN scale": (tensors("layers.0.mlp.down_proj.scales", lambda held: held * np.nan), "integrity", "NaN or infinity"),
    "zeroed layer": (tensors("layers.1.mlp.up_proj.qweight", np.zeros_like), "integrity", "not those that were computed"),
    "missing tensor": (tensors("layers.1.mlp.up_proj.qweight", lambda _: None), "integrity", "not read as a checkpoint"),
    "no quantisation": (
        document("config.json", lambda text: text.replace("quantization_config", "quantisation")), "integrity", "config.json",
    ),
    "wrong quantisation": (
        document("quantize_config.json", lambda text: text.replace("64", "128")), "integrity", r"quantize_config\.json: not as",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", GPTQ)
def test_a_gptq_checkpoint_with_a_fault(
    run: Callable[..., Manifest], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, check, said = GPTQ[fault]
    damaged(monkeypatch, gptq_writer, damage)
    is_caught(run, "gptq", check, said, tmp_path)


def initialisers(path: Path, pick: str) -> Iterator[ir.ExternalTensor]:
    for name, value in ir.load(path).graph.initializers.items():
        if pick in name and isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value


def stored(pick: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Damage:
    """Of an ONNX folder: values in its data file."""

    def damage(path: Path) -> None:
        found = [(each.path, each.offset, change(np.array(each.numpy()))) for each in initialisers(path, pick)]
        assert found
        for place, offset, values in found:
            with Path(place).open("r+b") as file:
                file.seek(offset or 0)
                file.write(np.ascontiguousarray(values).tobytes())

    return damage


def without_initialiser(path: Path) -> None:
    model = ir.load(path)
    name = next(name for name in model.graph.initializers if "layers.1.mlp.up_proj" in name)
    del model.graph.initializers[name]
    proto = ir.serde.serialize_model(model)
    path.write_bytes(proto.SerializeToString())


ONNX = DOCUMENTS | {
    "NaN scale": (stored("layers.0.mlp.down_proj.MatMul.weight_scales", lambda held: held * np.nan), "integrity", "NaN or inf"),
    "zeroed layer": (stored("layers.1.mlp.up_proj.MatMul.weight_scales", np.zeros_like), "integrity", "relative error 1"),
    "missing tensor": (without_initialiser, "integrity", "planned, not in the checkpoint"),
    "wrong heads": (
        document("genai_config.json", lambda text: text.replace('"num_key_value_heads": 2', '"num_key_value_heads": 4')),
        "integrity", r"genai_config\.json: not as planned",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", ONNX)
def test_an_onnx_folder_with_a_fault(
    run: Callable[..., Manifest], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, check, said = ONNX[fault]
    damaged(monkeypatch, onnx_writer, damage)
    is_caught(run, "onnx", check, said, tmp_path)


def stale_index(place: Path) -> None:
    placed = shard(place)
    name = next(iter(placed))
    (other,) = set(placed.values()) - {placed[name]}
    (place / INDEX).write_text(json.dumps({"weight_map": placed | {name: other}}))


def lost_tensor(place: Path) -> None:
    held = load_file(place / "model.safetensors")
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, place / "model.safetensors", {"format": "pt"})


def nan_weight(place: Path) -> None:
    held = load_file(place / "model.safetensors")
    held["model.layers.1.mlp.up_proj.weight"][5, 5] = np.nan
    save_file(held, place / "model.safetensors", {"format": "pt"})


SOURCE: dict[str, tuple[Callable[[Path], None], str]] = {
    "stale index": (stale_index, "says model-0000"),
    "missing tensor": (lost_tensor, r"missing: model\.layers\.1\.mlp\.up_proj\.weight"),
    "truncated tail": (lambda place: cut(place / "model.safetensors"), r"model\.safetensors is truncated"),
    "NaN weight": (nan_weight, "row 5 holds NaN or infinity"),
}


@pytest.mark.parametrize("fault", SOURCE)
def test_a_source_with_a_fault(run: Callable[..., Manifest], copy: Path, fault: str, tmp_path: Path) -> None:
    damage, said = SOURCE[fault]
    damage(copy)
    with pytest.raises(InputError, match=said) as caught:
        run("gguf", copy)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "published").exists()
    assert not list(tmp_path.rglob("*.gguf*"))


def other_weights(place: Path) -> None:
    held = load_file(place / "model.safetensors")
    held["model.norm.weight"] += 1
    save_file(held, place / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("change", ["model.safetensors", "tokenizer.json", "config.json"])
def test_another_revision_than_the_locked_one(copy: Path, tmp_path: Path, change: str) -> None:
    path = tmp_path / "fault.yaml"
    path.write_text(without_calibration(RECIPE.format(source=copy, target=TARGETS["gguf"])))
    recipe_lock.beside(path).write_text(locking.lock(recipe_file.read(path), silent).model_dump_json())
    if change == "model.safetensors":
        other_weights(copy)
    else:
        text = (copy / change).read_text()
        (copy / change).write_text(other_ids(text) if change == "tokenizer.json" else rope(text))
    with pytest.raises(InputError, match=rf"the lock does not hold(.|\n)*{change} is ") as caught:
        pipeline.convert(recipe_lock.apply(recipe_file.read(path), path), Options(work_dir=tmp_path / "build", threads=1))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "published").exists()


@pytest.fixture(scope="module")
def made(pico: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was published: build/fault and published, in one folder."""
    place = tmp_path_factory.mktemp("faults")
    text = RECIPE.format(source=pico("llama"), target=TARGETS["gguf"]).partition("calibration")[0]
    (place / "fault.yaml").write_text(f"{text}checks: false\npublish: [{{folder: published}}]\n")
    with contextlib.chdir(place):
        quantkit.convert(place / "fault.yaml", work_dir=place / "build", threads=1)
    return place


@pytest.fixture
def build(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made / "build" / "fault", tmp_path / "fault"))


@pytest.fixture
def published(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree((made / "published").resolve(), tmp_path / "folder"))


def summed(folder: Path, gone: str | None = None) -> None:
    """SHA256SUMS of what lies there, as somebody would mend it."""
    names = [line.partition("  ")[2] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    pairs = [(hashlib.sha256((folder / name).read_bytes()).hexdigest(), name) for name in names if name != gone]
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for digest, name in pairs))


def flipped(folder: Path) -> None:
    path = next(folder.glob("*.gguf"))
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def without_licence(folder: Path) -> None:
    (folder / "LICENSE").unlink()
    summed(folder, gone="LICENSE")


def other_licence(folder: Path) -> None:
    (folder / "LICENSE").write_text("Do what you like.\n")
    summed(folder)


def other_card(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: apache-2.0", "license: mit"))
    summed(folder)


AFTER = {
    "flipped byte": (flipped, "digests", InputError, "changed since it was built"),
    "licence removed": (without_licence, "licence", CheckFailed, "licence: LICENSE"),
    "licence exchanged": (other_licence, "licence", CheckFailed, "licence: LICENSE is another text"),
}


@pytest.mark.parametrize("fault", AFTER)
def test_a_build_with_a_fault_is_not_published(build: Path, fault: str, tmp_path: Path) -> None:
    damage, _, error, said = AFTER[fault]
    damage(build)
    with pytest.raises(error, match=said) as caught:
        publishing.finish(build, silent)
    assert caught.value.exit_code == {InputError: 2, CheckFailed: 3}[error]
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("fault", [*AFTER, "licence in the card"])
def test_a_published_folder_with_a_fault_is_told(
    published: Path, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, check = (other_card, "licence") if fault == "licence in the card" else AFTER[fault][:2]
    found = {each.check: each.verdict for each in provenance.verify(published, Asked(sample=0), 1, silent)}
    assert set(found.values()) == {"pass", "report"}
    damage(published)
    found = {each.check: each.verdict for each in provenance.verify(published, Asked(sample=0), 1, silent)}
    assert found[check] == "fail"
    monkeypatch.setattr("sys.argv", ["quantkit", "verify", str(published), "--sample", "0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert check in capsys.readouterr().err


@pytest.mark.parametrize("what", ["text", "card"])
def test_a_licence_that_is_lost_on_the_way_out(
    pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    carried, documents = sealing.carried, sealing.documents
    if what == "text":
        monkeypatch.setattr(sealing, "carried", lambda *given: {**carried(*given), "LICENSE": "Another.\n"})
    else:
        monkeypatch.setattr(
            sealing,
            "documents",
            lambda *given: {name: text.replace("license: apache-2.0\n", "") for name, text in documents(*given).items()},
        )
    text = RECIPE.format(source=pico("llama"), target=TARGETS["gguf"]).partition("calibration")[0]
    (tmp_path / "fault.yaml").write_text(f"{text}checks: false\npublish: [{{folder: published}}]\n")
    with pytest.raises(CheckFailed, match="licence: ") as caught:
        quantkit.convert(tmp_path / "fault.yaml", work_dir=tmp_path / "build", threads=1)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "published").exists()


def test_the_exit_codes_are_those_of_the_tree() -> None:
    assert (SourceError.exit_code, InputError.exit_code, CheckFailed.exit_code, QuantkitError.exit_code) == (2, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_a_run_without_a_fault_is_published(run: Callable[..., Manifest], kind: str, tmp_path: Path) -> None:
    assert run(kind).verdict == "pass"
    assert (tmp_path / "published" / "manifest.json").is_file()
