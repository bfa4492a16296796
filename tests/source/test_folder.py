"""Folders: single, sharded, pickled, without weights; and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import PICO, shard
from safetensors.numpy import load_file
from safetensors.torch import save_file

from quantkit import source
from quantkit.errors import SourceError, UnsupportedError, WeightError
from quantkit.formats.gguf import layout
from quantkit.progress import silent
from quantkit.source import folder
from quantkit.targets import GgufTarget


@pytest.fixture
def copy(pico: Callable[[str], Path], tmp_path: Path) -> Path:
    """A pico Llama of one's own to damage."""
    return Path(shutil.copytree(pico("llama"), tmp_path / "model"))


@pytest.mark.parametrize("name", PICO)
def test_weights_are_those_that_safetensors_reads(name: str, pico: Callable[[str], Path]) -> None:
    found = source.describe(str(pico(name)))
    wanted = load_file(pico(name) / folder.SINGLE)
    assert found.weights.infos.keys() == {tensor for tensor in wanted if "pooler" not in tensor}
    for tensor in found.weights.infos:
        values = wanted[tensor]
        assert np.array_equal(found.weights.read(tensor), values)
        assert np.array_equal(found.weights.read(tensor, 3, 200), values[3:200])
    found.weights.close()


def test_what_a_folder_says_of_itself(pico: Callable[[str], Path]) -> None:
    found = source.describe(str(pico("llama")))
    assert (found.kind, found.name, found.licence.id) == ("folder", "pico llama", "apache-2.0")
    assert found.licence.files == {"LICENSE": "Apache License, Version 2.0\n"}
    assert found.tokenizer is not None
    assert found.tokenizer.chat_template is not None
    assert found.digests == {}
    seen: list[str] = []
    fetched = source.fetch(found, lambda what, done, total: seen.append(f"{what} {done / total}"))
    assert list(fetched.digests) == [folder.SINGLE]
    assert seen[-1] == "sha256 model.safetensors 1.0"


def test_narrow_types_are_widened(copy: Path) -> None:
    tensors = {name: torch.from_numpy(value) for name, value in load_file(copy / folder.SINGLE).items()}
    for dtype, stored in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
        save_file({name: value.to(dtype) for name, value in tensors.items()}, copy / folder.SINGLE)
        found = source.describe(str(copy))
        name = "model.layers.1.mlp.down_proj.weight"
        assert found.weights.infos[name].dtype == stored
        assert np.array_equal(found.weights.read(name, 5, 9), tensors[name].to(dtype).float().numpy()[5:9])


def test_shards_are_read_like_one_file(copy: Path) -> None:
    wanted = load_file(copy / folder.SINGLE)
    shard(copy)
    found = source.fetch(source.describe(str(copy)), silent)
    assert len(found.digests) == 2
    assert all(np.array_equal(found.weights.read(name), value) for name, value in wanted.items())


def test_missing_shard(copy: Path) -> None:
    shard(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"names shards that are not there: model-00002-of-00002\.safetensors"):
        source.describe(str(copy))


def test_an_index_that_disagrees(copy: Path) -> None:
    files = shard(copy)
    files["model.layers.9.ghost.weight"] = files.pop("model.norm.weight")
    (copy / folder.INDEX).write_text(json.dumps({"weight_map": files}))
    with pytest.raises(SourceError) as caught:
        source.describe(str(copy))
    assert "model.norm.weight lies in model-00002-of-00002.safetensors, model.safetensors.index.json says nothing" in str(
        caught.value
    )
    assert "model.layers.9.ghost.weight is not in model-00002-of-00002.safetensors" in str(caught.value)


def test_truncated_safetensors(copy: Path) -> None:
    path = copy / folder.SINGLE
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 100)
    with pytest.raises(SourceError, match=rf"model.safetensors is truncated: {size - 100} bytes, the header says {size}"):
        source.describe(str(copy))
    with path.open("r+b") as file:
        file.truncate(20)
    with pytest.raises(SourceError, match="truncated: 20 bytes, its header alone wants"):
        source.describe(str(copy))


def test_a_name_that_comes_twice(copy: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{entry}, {entry}}}".encode()
    (copy / folder.SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SourceError, match="names a twice"):
        source.describe(str(copy))


def _rewrite(place: Path, name: str, change: Callable[[Any], Any]) -> None:
    tensors = {key: torch.from_numpy(value) for key, value in load_file(place / folder.SINGLE).items()}
    save_file({**tensors, name: change(tensors[name])}, place / folder.SINGLE)


def test_wrong_shape(copy: Path) -> None:
    _rewrite(copy, "model.layers.0.self_attn.k_proj.weight", lambda value: value[:100].contiguous())
    with pytest.raises(WeightError, match=r"k_proj.weight is \[100, 256\], config.json says \[128, 256\] \(num_key_value"):
        source.describe(str(copy))


def test_stored_types_that_are_not_weights(copy: Path) -> None:
    _rewrite(copy, "model.norm.weight", lambda value: value.to(torch.float8_e4m3fn))
    with pytest.raises(UnsupportedError, match=r"nothing of a quantisation: model.norm.weight is F8_E4M3"):
        source.describe(str(copy))
    _rewrite_config(copy, quantization_config={"quant_method": "bitnet"})
    with pytest.raises(UnsupportedError, match=r"quantised by bitnet is not supported"):
        source.describe(str(copy))


def _rewrite_config(place: Path, **change: Any) -> None:
    path = place / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_unsupported_architecture(copy: Path) -> None:
    _rewrite_config(copy, model_type="mamba")
    with pytest.raises(UnsupportedError, match=r"'mamba' is not supported; supported: bert, falcon, .*llama, mistral"):
        source.describe(str(copy))


def test_config_alone_is_planned_and_not_read(copy: Path) -> None:
    wanted = source.describe(str(copy)).weights.infos
    (copy / folder.SINGLE).unlink()
    found = source.describe(str(copy))
    assert found.reconstructed
    assert found.weights.infos == wanted
    with pytest.raises(SourceError, match=r"holds config.json and no weights"):
        found.weights.read("model.norm.weight")
    with pytest.raises(SourceError, match="planned, not converted"):
        source.fetch(found, silent)


def test_pickled_weights(copy: Path) -> None:
    tensors = {name: torch.from_numpy(value) for name, value in load_file(copy / folder.SINGLE).items()}
    (copy / folder.SINGLE).unlink()
    torch.save({name: value.to(torch.bfloat16) for name, value in tensors.items()}, copy / folder.PICKLED[0])
    found = source.fetch(source.describe(str(copy)), silent)
    assert list(found.digests) == [folder.PICKLED[0]]
    name = "model.layers.0.mlp.up_proj.weight"
    assert found.weights.infos[name].dtype == "BF16"
    assert np.array_equal(found.weights.read(name, 2, 5), tensors[name].to(torch.bfloat16).float().numpy()[2:5])
    found.weights.close()


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("bomb"),))


def test_pickled_code_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    (copy / folder.SINGLE).unlink()
    torch.save({"model.norm.weight": Bomb()}, copy / folder.PICKLED[0])
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin is pickled and holds more than tensors"):
        source.describe(str(copy))
    (copy / folder.PICKLED[0]).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((SourceError, UnsupportedError), match=r"pytorch_model\.bin"):
        source.describe(str(copy))
    assert not (copy / "bomb").exists()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(SourceError, match=r"it has no config.json; it holds x\.gguf: name the file itself"):
        source.describe(str(tmp_path))
    with pytest.raises(SourceError, match="unknown scheme 's3'"):
        source.describe("s3://bucket/model")
    with pytest.raises(SourceError, match=r"no such folder, and not a .gguf file"):
        source.describe(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"config\.json is not JSON"):
        source.describe(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "[]", r"config\.json holds a list where an object is expected"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json holds a list"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template is a int, not a text"),
        ("tokenizer.json", '{"a": 1}', "the tokenizer is damaged"),
        ("model.safetensors", "", "is truncated"),
        (folder.INDEX, "{}", "no weight_map from tensors to files"),
    ],
)
def test_documents_of_another_shape(copy: Path, file: str, content: str, said: str) -> None:
    if file == folder.INDEX:
        (copy / folder.SINGLE).unlink()
    (copy / file).write_text(content)
    with pytest.raises(SourceError, match=said):
        source.describe(str(copy))


@pytest.mark.parametrize("entry", [5, {}, {"dtype": "F32", "shape": [1], "data_offsets": [0]}, {"dtype": "F32", "shape": "x"}])
def test_a_header_that_describes_a_tensor_wrongly(copy: Path, entry: object) -> None:
    header = json.dumps({"lm_head.weight": entry}).encode()
    (copy / folder.SINGLE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(SourceError, match=r"describes lm_head\.weight wrongly"):
        source.describe(str(copy))


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 10**12}, {"num_key_value_heads": "2"}, {"head_dim": 0}, {"rope_parameters": 5}, {"rope_theta": "x"}],
)
def test_impossible_sizes(copy: Path, change: dict[str, Any]) -> None:
    _rewrite_config(copy, **{"rope_parameters": None, **change})
    with pytest.raises(SourceError, match=r"config\.json"):
        layout.plan(GgufTarget(format="gguf", type="Q8_0"), "", source.describe(str(copy)), "model")


def test_a_file_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder, "describe", refuse)  # root may read everything
    with pytest.raises(SourceError, match=r"cannot be read: .*Permission denied"):
        source.describe(str(copy))


def test_chat_templates_by_precedence(copy: Path) -> None:
    def template() -> str | None:
        tokenizer = source.describe(str(copy)).tokenizer
        assert tokenizer is not None
        return tokenizer.chat_template

    (copy / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    (copy / "chat_template.jinja").write_text("jinja")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "config"}))
    assert template() == "config"
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    assert template() == "jinja"
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert template() == "jinja"
    (copy / "chat_template.jinja").unlink()
    assert template() == "json"


def test_a_lora_adapter_is_refused_with_the_remedy(pico: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"a LoRA adapter: it holds changes to org/base, not a model. Merge it first"):
        source.describe(str(tmp_path))
    shutil.copy(pico("llama") / "config.json", tmp_path)
    with pytest.raises(UnsupportedError, match="LoRA adapter"):
        source.describe(str(tmp_path))
    shutil.copy(pico("llama") / "model.safetensors", tmp_path)  # a merged model may keep the adapter's files
    assert source.describe(str(tmp_path)).weights.infos
