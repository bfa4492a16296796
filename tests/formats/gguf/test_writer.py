"""The writer: exact sizes, the same bytes on every run, the model's own logits in llama.cpp, and clean refusals."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import DECODERS, ENCODERS, TRANSDUCERS, stack_experts
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quantkit import source
from quantkit.checks import scoring
from quantkit.codecs.gguf import codecs
from quantkit.engines import llama_cpp, llama_cpp_encoder
from quantkit.errors import InputError, ResourceError, WeightError
from quantkit.formats.gguf import layout, writer
from quantkit.progress import silent
from quantkit.targets import GGUF_TYPES, GgufTarget
from quantkit.values import Importance

gguf = pytest.importorskip("gguf")


def write(checkpoint, kind, folder, threads=2, importance=None, **settings):
    folder.mkdir(exist_ok=True)
    target = GgufTarget(format="gguf", type=kind, **settings)
    snapshot = source.fetch(source.describe(str(checkpoint)), silent)
    plan = layout.plan(target, "0" * 64, snapshot, "pico")
    return plan, writer.write(plan, snapshot, folder, importance=importance or {}, threads=threads, progress=silent)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_the_file_is_what_was_planned_to_the_byte(pico, tmp_path, kind):
    plan, artefact = write(pico("llama"), kind, tmp_path, imatrix=kind == "Q2_K_S")
    assert artefact.path.stat().st_size == plan.nbytes
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(artefact.path).tensors}
    assert {name: tensor.tensor_type.name for name, tensor in tensors.items()} == {row.name: row.type for row in plan.rows}
    assert [path.name for path in tmp_path.iterdir()] == [plan.file]
    blocks = [int(row.name.split(".")[1]) for row in plan.rows if row.name.startswith("blk.")]
    assert blocks == sorted(blocks)


def test_parts_are_within_the_limit_and_llama_cpp_finds_them(pico, tmp_path):
    limit = 700_000
    plan, artefact = write(pico("llama"), "Q8_0", tmp_path / "parts", split=limit)
    _, whole = write(pico("llama"), "Q8_0", tmp_path / "whole")
    assert len(artefact.files) > 2
    assert [file.path.stat().st_size for file in artefact.files] == [file.nbytes for file in plan.files]
    assert max(file.nbytes for file in artefact.files) <= limit
    assert artefact.path.name.endswith(f"-Q8_0-00001-of-{len(artefact.files):05d}.gguf")
    stored = [{t.name: t.data for t in gguf.GGUFReader(file.path).tensors} for file in artefact.files]
    wanted = {t.name: t.data for t in gguf.GGUFReader(whole.path).tensors}
    assert sum(map(len, stored)) == len(wanted)
    assert all(np.array_equal(data, wanted[name]) for part in stored for name, data in part.items())
    logits = []
    for path in (artefact.path, whole.path):
        runner = llama_cpp.open_runner(path, context=256, threads=1, exact=True)
        logits.append(runner.logits([5, 6, 7, 8]))
        runner.close()
    assert np.array_equal(*logits)


def test_a_limit_below_a_tensor_names_it(pico, tmp_path):
    with pytest.raises(InputError, match=r"cannot hold token_embd.weight, which takes 139,264"):
        write(pico("llama"), "Q8_0", tmp_path, split=100_000)


def test_bytes_depend_neither_on_threads_nor_on_folders(pico, tmp_path):
    copy = tmp_path / "another name"
    shutil.copytree(pico("llama"), copy)
    digests = {
        write(pico("llama"), "Q4_K_M", tmp_path / "a", threads=1)[1].sha256,
        write(pico("llama"), "Q4_K_M", tmp_path / "b", threads=2)[1].sha256,
        write(copy, "Q4_K_M", tmp_path / "c", threads=3)[1].sha256,
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", DECODERS)
def test_llama_cpp_runs_the_file_as_transformers_the_checkpoint(pico, tmp_path, name):
    model = AutoModelForCausalLM.from_pretrained(pico(name), dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, 64)
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
        ends = {"eos_token_id": -1, "pad_token_id": 0}
        continued = model.generate(torch.from_numpy(tokens)[None], max_new_tokens=16, do_sample=False, **ends)[0, 64:].tolist()
    for kind, most in (("F32", 1e-6), ("Q8_0", 1e-3)):
        _, artefact = write(pico(name), kind, tmp_path / kind)
        runner = llama_cpp.open_runner(artefact.path, context=256, threads=2, exact=True)
        try:
            found, generated = runner.logits(tokens.tolist()), runner.generate(tokens.tolist(), 16)
        finally:
            runner.close()
        assert np.square(wanted - found).mean() / np.square(wanted).mean() < most, kind
        if kind == "F32":
            assert generated == continued[: len(generated)]
            assert len(generated) == 16 or continued[len(generated)] == model.config.eos_token_id


@pytest.mark.parametrize("name", ENCODERS)
def test_llama_cpp_embeds_as_transformers_does(pico, tmp_path, name):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(pico(name), dtype=torch.float32).eval()
    dice = np.random.default_rng(0)
    texts = [dice.integers(5, model.config.vocab_size, count) for count in (3, 7, 12, 20, 33, 47, 64, 90)]
    with torch.no_grad():
        states = [model(torch.from_numpy(tokens)[None]).last_hidden_state[0].numpy() for tokens in texts]
    wanted = np.stack([each.mean(0) if name == "bert" else each[0] for each in states])
    for kind, least in (("F32", 1 - 1e-6), ("Q8_0", 0.9995)):
        _, artefact = write(pico(name), kind, tmp_path / kind)
        embedder = llama_cpp_encoder.open_embedder(artefact.path, context=128, threads=2, exact=True)
        try:
            found = np.stack([embedder.embed(tokens.tolist()) for tokens in texts])
            with pytest.raises(InputError, match="129 tokens do not fit a context of 128"):
                embedder.embed([5] * 129)
        finally:
            embedder.close()
        assert cosine(found, wanted).min() > least, kind
        if kind == "F32":
            assert np.square(wanted - found).mean() / np.square(wanted).mean() < 1e-6
            near = [np.argsort([-cosine(one[None], other[None])[0] for other in rows]).tolist()
                    for rows in (found, wanted) for one in rows]  # fmt: skip
            assert near[: len(texts)] == near[len(texts) :]


def cosine(one, two):
    return (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_llama_cpp_decodes_what_it_encoded_as_transformers_does(pico, tmp_path, name):
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(pico(name), dtype=torch.float32).eval()
    dice = np.random.default_rng(0)
    tokens = dice.integers(3, model.config.vocab_size, 150)  # past the greatest distance that has a bucket of its own
    answer = np.r_[0, dice.integers(3, model.config.vocab_size, 150)]
    with torch.no_grad():
        given, answered = (torch.from_numpy(each)[None] for each in (tokens, answer))
        wanted = model(input_ids=given, decoder_input_ids=answered).logits[0].numpy()
        ends = {"eos_token_id": None, "pad_token_id": 0}
        continued = model.generate(given, max_new_tokens=16, do_sample=False, **ends)[0, 1:].tolist()
    for kind, most in (("F32", 1e-6), ("Q8_0", 1e-3)):
        _, artefact = write(pico(name), kind, tmp_path / kind)
        runner = llama_cpp_encoder.open_transducer(artefact.path, context=256, threads=2, exact=True)
        try:
            found, generated = runner.logits(tokens.tolist(), answer.tolist()), runner.generate(tokens.tolist(), 16)
        finally:
            runner.close()
        assert np.square(wanted - found).mean() / np.square(wanted).mean() < most, kind
        assert scoring.compare(wanted[:-1], found[:-1], answer[1:].astype(np.int32))[2].mean() < most
        if kind == "F32":
            assert generated == continued[: len(generated)]
            assert len(generated) == 16 or continued[len(generated)] == 1


def test_importance_lowers_the_error_where_it_is_high(pico, tmp_path):
    snapshot = source.describe(str(pico("llama")))
    name, stored = "model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"
    original = snapshot.weights.read(name)
    weight = np.ones(original.shape[1], np.float32)
    weight[::8] = 1000.0

    def error(folder, importance):
        _, artefact = write(pico("llama"), "Q4_K_M", folder, importance=importance)
        tensor = next(tensor for tensor in gguf.GGUFReader(artefact.path).tensors if tensor.name == stored)
        decoded = codecs()[tensor.tensor_type.name].decode(np.ascontiguousarray(tensor.data))
        return float((weight * np.square(decoded - original)).sum())

    assert error(tmp_path / "a", {stored: Importance(weight, None, np.array([1]))}) < 0.8 * error(tmp_path / "b", {})


def test_a_nan_is_named_with_its_tensor_and_row_and_nothing_is_left(pico, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pico("llama"), broken)
    poke(broken / "model.safetensors", "model.layers.1.mlp.down_proj.weight", row=7, value=np.nan)
    with pytest.raises(WeightError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: row 7 holds NaN or infinity"):
        write(broken, "Q4_K_M", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_weight_beyond_the_type_is_named_with_its_tensor(pico, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pico("llama"), broken)
    poke(broken / "model.safetensors", "model.layers.1.mlp.down_proj.weight", row=7, value=7e4)
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.down_proj\.weight, of rows 0 to 255: row 7 of them holds 70000"):
        write(broken, "F16", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_leaves_nothing(pico, small_disk):
    with pytest.raises(ResourceError, match="the disk is full"):
        write(pico("llama"), "F32", small_disk)
    assert not [path for path in Path(small_disk).iterdir() if path.is_file()]


def poke(path, name, row, value):
    """Set the first weight of a row of a float32 tensor in a safetensors file."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    info = json.loads(data[8 : 8 + length])[name]
    assert info["dtype"] == "F32"
    offset = 8 + length + info["data_offsets"][0] + 4 * row * info["shape"][1]
    data[offset : offset + 4] = struct.pack("<f", value)
    path.write_bytes(data)


def test_a_checkpoint_with_fused_experts_gives_the_same_tensors(pico, tmp_path):
    place = stack_experts(pico("qwen3_moe"), tmp_path / "fused")
    for kind in ("Q4_K_M", "Q8_0"):
        made = [write(folder, kind, tmp_path / name)[1].path for name, folder in (("a", pico("qwen3_moe")), ("b", place))]
        apart, fused = ({tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors} for path in made)
        assert apart == fused


@pytest.mark.parametrize("config_says", [513, 512])
def test_an_added_row_makes_no_difference(pico, tmp_path, config_says):
    """As Alpaca did: one token more than Llama has, so that the rows are no multiple of anything."""
    place = Path(shutil.copytree(pico("llama"), tmp_path / "alpaca"))
    tensors = load_file(place / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name].mean(0, keepdim=True)])
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    definition = json.loads((place / "tokenizer.json").read_text())
    count = len(definition["model"]["vocab"])
    pad = {**definition["added_tokens"][0], "id": count, "content": "[PAD]"}
    definition["added_tokens"].append(pad)
    (place / "tokenizer.json").write_text(json.dumps(definition))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"vocab_size": config_says}))
    if config_says != len(tensors[name]):
        with pytest.raises(WeightError, match=r"embed_tokens.weight is \[513, 256\], config.json says \[512, 256\]"):
            source.describe(str(place))
        return
    _, artefact = write(place, "Q4_K_M", tmp_path / "out")
    runner = llama_cpp.open_runner(artefact.path, context=64, threads=1, exact=True)
    found = runner.logits([5, 6, 7])
    runner.close()
    assert found.shape == (3, 513)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([[5, 6, 7]])).logits[0].numpy()
    assert np.square(found - wanted).sum() / np.square(wanted).sum() < 0.05
