"""Footprint: hand-worked sums, and llama.cpp itself as the oracle."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_pico

import quantkit
from quantkit import (
    footprint,
    footprint_onnx,
    footprint_onnxruntime,
    footprint_run,
    footprint_torch,
    memory,
    quality,
    requirements,
    resident,
    source,
)
from quantkit.errors import UnsupportedError
from quantkit.footprint import Memory
from quantkit.manifest import TargetRecord
from quantkit.report import machine
from quantkit.values import Resident, Row

MISTRAL = {
    "model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "vocab_size": 32768, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": 4096,
}  # fmt: skip
SMOLLM2 = {
    "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


def row(name: str, shape: tuple[int, ...], type: str, nbytes: int) -> Row:
    return Row(name, name, shape, "F32", type, type, "test", nbytes)


@pytest.mark.parametrize(("context", "gib"), [(4096, 0.5), (8192, 1), (32768, 4)])
def test_kv_cache_of_mistral(context: int, gib: float) -> None:
    """llama.cpp gives mistral the whole context: its sliding_window changes nothing."""
    assert footprint.kv_cache(MISTRAL, context) == gib * footprint.GiB


def test_kv_cache_of_smollm2_is_what_llama_cpp_prints() -> None:
    assert [footprint.kv_cache(SMOLLM2, context) / footprint.MiB for context in (512, 2048, 8192)] == [11.25, 45, 180]


def test_context_is_padded_to_256() -> None:
    assert footprint.kv_cache(SMOLLM2, 1) == footprint.kv_cache(SMOLLM2, 256)


def test_windowed_layers_hold_the_window() -> None:
    gemma = MISTRAL | {
        "model_type": "gemma3_text",
        "sliding_window": 1024,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 2,
    }
    per_token = 2 * 8 * 128 * 2
    assert footprint.kv_cache(gemma, 32768) == per_token * (5 * 32768 + 27 * (1024 + 512))
    assert footprint.kv_cache(gemma, 512) == per_token * 32 * 512


def test_compute_buffer_is_what_llama_cpp_reserves() -> None:
    """98.25 MiB at 512 with logits for all, besides 96 MiB of logits; 141.51 MiB at 131,072 (the mask)."""
    everything = footprint.compute_buffer(SMOLLM2, 512, outputs=512)
    assert everything == (98.25 + 96) * footprint.MiB
    assert footprint.compute_buffer(SMOLLM2, 131072) / footprint.MiB == pytest.approx(141.51, abs=0.5)


def test_repacked_copy() -> None:
    rows = [
        row("token_embd.weight", (1000, 64), "Q4_0", 7000),
        row("blk.0.ffn_up.weight", (256, 64), "Q4_0", 500),
        row("blk.0.odd.weight", (12, 64), "Q4_0", 40),
        row("blk.0.ffn_down.weight", (256, 256), "Q6_K", 900),
        row("blk.0.attn_norm.weight", (64,), "F32", 256),
    ]
    assert footprint.repacked(rows, ["AVX2"]) == 7500  # tied: the embedding is the output matrix
    assert footprint.repacked(rows, ["DOTPROD"]) == 7500 + 40 + 900
    assert footprint.repacked(rows, ["SSE3"]) == 0
    assert footprint.repacked([*rows, row("output.weight", (1000, 64), "Q6_K", 9000)], ["AVX2"]) == 500


def test_memory_is_the_sum_of_its_terms() -> None:
    [small, large] = footprint.memory(10**9, [], MISTRAL, [512, 32768])
    assert large.growth == large.weights + large.kv_cache + large.compute + large.overhead
    assert large.total == large.growth + large.process
    assert (small.context, small.weights) == (512, 10**9)
    assert large.total - small.total > footprint.kv_cache(MISTRAL, 32768) - footprint.kv_cache(MISTRAL, 512)


def test_kv_cache_by_type_by_layer_and_of_a_latent() -> None:
    f16 = footprint.kv_cache(MISTRAL, 4096)
    assert footprint.kv_cache(MISTRAL, 4096, "q8_0") == f16 * 17 // 32
    assert footprint.kv_cache(MISTRAL, 4096, "f32") == 2 * f16
    layered = MISTRAL | {"model_type": "layered", "num_key_value_heads": [8] * 16 + [4] * 16}
    assert footprint.kv_cache(layered, 4096) == f16 * 3 // 4
    latent = MISTRAL | {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert footprint.kv_cache(latent, 4096) == 2 * 32 * 4096 * 576


def test_onnx_holds_packed_copies_one_cache_and_the_logits_of_a_chunk() -> None:
    head = row("lm_head.MatMul.weight", (49152, 576), "INT8B32", 0)
    table = row("model.embed_tokens.weight", (49152, 576), "INT8B32", 0)
    blocks = 49152 * 576 // 32
    assert footprint_onnx.packed([head, table], 49152) == 8 * blocks
    assert footprint_onnx.packed([head], 49152) == 8 * blocks + 49152 * 576  # tied: its codes stay for looking up
    assert footprint_onnx.packed([row("norm", (576,), "F32", 2304)], 49152) == 0
    short, long = footprint_onnx.memory(10**8, [head], SMOLLM2, [512, 8192])
    assert long.kv_cache == 16 * short.kv_cache == 360 * footprint.MiB
    assert short.compute == long.compute > 4 * 512 * 49152
    assert long.total - long.growth == footprint_onnx.PROCESS


BERT = {
    "model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "vocab_size": 30522,
    "num_attention_heads": 12, "max_position_embeddings": 512,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 6, "num_decoder_layers": 4,
    "vocab_size": 32128,
}  # fmt: skip


def test_llama_cpp_reads_an_encoders_text_at_once() -> None:
    """all-MiniLM-L6-v2 as Q8_0: a child process took 50.7 MB more at 128 tokens, 103.1 at 512."""
    short, long = footprint.memory(25_282_752, [], BERT, [128, 512])
    assert short.growth / 1e6 == pytest.approx(50.7, rel=0.02)
    assert long.growth / 1e6 == pytest.approx(103.1, rel=0.02)
    assert short.kv_cache == long.kv_cache == 0


def test_llama_cpp_does_not_fuse_t5s_attention() -> None:
    assert footprint.compute_buffer(T5, 2048) > 3 * 4 * 8 * 2048**2
    assert footprint.kv_cache(T5, 2048) == 4 * 2 * 512 * 2048 * 2, "its decoder's layers alone"


def test_onnxruntime_holds_an_encoders_table_three_times_while_it_is_read() -> None:
    """all-MiniLM-L6-v2 in 8 bits: 61.7 MB more up to 256 tokens, 106.9 at 512."""
    table = row("embeddings.word_embeddings.weight", (30522, 384), "INT8B128", 0)
    found = footprint_onnxruntime.memory(23_754_643, [table], BERT, [16, 256, 512], kind="encoder")
    assert [item.growth / 1e6 for item in found] == pytest.approx([61.7, 61.7, 106.9], rel=0.1)


def test_onnxruntime_has_every_session_hold_its_weights() -> None:
    rows = [
        row("encoder.block.0.layer.0.SelfAttention.q.weight", (512, 512), "INT7", 1),
        row("decoder.block.0.layer.0.SelfAttention.q.weight", (512, 512), "INT7", 10),
        row("shared.weight", (32128, 512), "INT8B128", 100),
        row("decoder_model/alone", (4,), "F32", 1000),
    ]
    head, graph = 32128 * 512, footprint_onnxruntime.DECODER_GRAPH
    assert footprint_onnxruntime.copies(rows, "encoder-decoder", 32128) == 10 + 200 + 2 * (head + graph)
    merged = [*rows[:3], row("decoder_model_merged/alone", (4,), "F32", 1000)]
    assert footprint_onnxruntime.copies(merged, "encoder-decoder", 32128) == 100 + head + graph
    assert footprint_onnxruntime.copies(rows, "encoder", 32128) == 0


def test_onnxruntime_gives_logits_of_a_whole_prompt_and_copies_the_cache() -> None:
    (found,) = footprint_onnxruntime.memory(0, [], SMOLLM2 | {"model_type": "gpt2x"}, [1024], kind="decoder")
    assert found.compute > 4 * 1024 * 49152 + found.kv_cache
    assert footprint_onnxruntime.compute_buffer(T5, 512, "encoder-decoder") < footprint_onnxruntime.compute_buffer(
        BERT | {"num_attention_heads": 16, "intermediate_size": 2048}, 512, "encoder"
    )


def test_gptq_is_dequantised_and_a_window_that_is_filled_has_a_mask() -> None:
    rows = [row("model.embed_tokens.weight", (49152, 576), "F16", 0), row("layer.weight", (576, 576), "W4G64", 0)]
    assert footprint_torch.dequantised(rows) == 2 * (49152 * 576 + 576 * 576)
    (found,) = footprint_torch.memory(rows, SMOLLM2, [2048])
    assert found.kv_cache == 45 * footprint.MiB
    assert found.compute == 2 * 2048 * (4 * 576 + 3 * 1536)  # the MLP
    narrow = MISTRAL | {"intermediate_size": 1024, "sliding_window": 512}
    assert footprint_torch.compute_buffer(narrow, 511) == 2 * 511 * (3 * 4096 + 4 * 32 * 128 + 2 * 8 * 128)
    assert footprint_torch.compute_buffer(narrow, 512) == 2 * 512 * (3 * 4096 + 4 * 32 * 128) + 3 * 512**2
    assert not footprint_torch.masked(MISTRAL | {"use_sliding_window": False}, 8192)
    assert not footprint_torch.masked(MISTRAL | {"layer_types": ["full_attention"] * 32}, 8192)


def test_gptq_peaks_while_it_is_read_where_the_prompt_is_short() -> None:
    rows = [row("model.embed_tokens.weight", (49152, 576), "F16", 0), row("layer.weight", (576, 576), "W4G64", 0)]
    assert footprint_torch.reading(rows) == 8 * 576**2
    untied = [*rows, row("lm_head.weight", (49152, 576), "F16", 0)]
    assert footprint_torch.reading(untied) == 96 * footprint.MiB  # a slab of 16 Mi weights
    short, long = footprint_torch.memory(untied, SMOLLM2, [512, 8192])
    assert short.kv_cache + short.compute == 96 * footprint.MiB < long.compute


def test_onednn_turns_the_head() -> None:
    plain, more = (footprint_torch.compute_buffer(SMOLLM2, 4096, onednn=onednn) for onednn in (False, True))
    assert plain == more == 2 * 4096 * (4 * 576 + 3 * 1536)
    (found,) = footprint_torch.memory([], SMOLLM2, [512], instruction_sets=["AVX2", "AVX512F"])
    assert found.compute == 2 * 49152 * 576


def test_resident_memory_is_no_more_than_its_peak() -> None:
    assert 0 < memory.resident() <= memory.peak()


def test_machine_classes() -> None:
    GiB = footprint.GiB
    fits = footprint.machine_classes({2048: 5 * GiB, 8192: 6 * GiB, 32768: 15 * GiB})
    assert fits == {8: 8192, 12: 8192, 16: 8192, 24: 32768, 32: 32768, 64: 32768}
    assert footprint.machine_classes({512: 7 * GiB})[8] is None


def test_standard_contexts_end_at_the_limit() -> None:
    assert footprint.standard_contexts(8192) == [512, 1024, 2048, 4096, 8192]
    assert footprint.standard_contexts(5000) == [512, 1024, 2048, 4096, 5000]
    assert footprint.standard_contexts(256) == [256]


def test_contexts_beyond_the_limit_give_way_to_parts_of_it() -> None:
    assert footprint.within((512, 2048, 8192), 32768) == [512, 2048, 8192]
    assert footprint.within((512, 2048, 8192), 4096) == [512, 2048, 4096]
    assert footprint.within((512, 2048, 8192), 512) == [128, 256, 512]
    assert footprint.within((), 512) == []
    assert footprint.within((1000,), 3) == [3]
    assert footprint.within((8, 16, 32), 3) == [1, 3]


def test_decode_ceiling_of_mistral_q4() -> None:
    """40 GB/s and 4.37 GB of weights with 4k of cache: 8.2 tokens/s."""
    weights = {"token_embd.weight": 75_000_000, "output.weight": 4_370_000_000}
    cache = footprint.kv_cache(MISTRAL, 4096)
    read = footprint.bytes_per_token(weights) + cache
    assert read == 4_370_000_000 + cache
    assert footprint.decode_ceiling(40e9, read) == pytest.approx(8.2, abs=0.1)
    assert footprint.bytes_per_token({"token_embd.weight": 10, "blk.0.attn_q.weight": 5}) == 15  # tied: read as the head


def test_prefill_ceiling_counts_products_of_8_bits_by_the_cpu() -> None:
    assert footprint.prefill_ceiling(100e9, 7_000_000_000, ["AVX2", "FMA"]) == pytest.approx(2 * 100e9 / 14e9)
    assert footprint.prefill_ceiling(100e9, 7_000_000_000, ["AVX2", "AVX512-VNNI"]) == pytest.approx(4 * 100e9 / 14e9)


def test_a_config_without_its_numbers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'rwkv'.*hidden_size, intermediate_size"):
        footprint.kv_cache({"model_type": "rwkv", "num_hidden_layers": 2}, 512)


def test_estimates_name_their_terms() -> None:
    rows = [row("token_embd.weight", (49152, 576), "Q8_0", 30_081_024)]
    terms = footprint_run.conversion_memory(rows, slab_weights=1 << 19, threads=2)
    assert terms["float32 slabs"] == 2 * 4 * (1 << 19)
    assert terms["encoded tensors"] == 30_081_024
    assert footprint_run.conversion_memory(rows * 3, slab_weights=1, threads=1)["encoded tensors"] == 2 * 30_081_024
    walk = footprint_run.walk_memory(SMOLLM2, sequences=16, length=512, micro_batch=1)
    assert walk["one block"] == 4 * (576 * 64 * 24 + 3 * 576 * 1536)
    assert sum(walk.values()) < footprint.GiB
    two = footprint_run.walk_memory(SMOLLM2, sequences=16, length=512, micro_batch=1, threads=2)
    assert sum(two.values()) - sum(walk.values()) == walk["activations"] + walk["attention scores"]
    assert footprint_run.head_memory(MISTRAL, 16, 512)["head"] == 512 * footprint.MiB


_CHILD = """
import ctypes, json, sys
import llama_cpp
import numpy as np

path, context = sys.argv[1].encode(), int(sys.argv[2])
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = context, 512, 512, 2, 2
state = llama_cpp.llama_init_from_model(model, params)
tokens = np.random.default_rng(0).integers(10, 40000, context).astype(np.int32)
for start in range(0, context, 512):
    part = (ctypes.c_int32 * 512)(*tokens[start : start + 512].tolist())
    assert llama_cpp.llama_decode(state, llama_cpp.llama_batch_get_one(part, 512)) == 0
status = dict(line.split(":") for line in open("/proc/self/status"))
print(json.dumps(int(status["VmHWM"].split()[0]) * 1024))
"""


def _quantised(source: Path, folder: Path, ftype: str) -> Path:
    import ctypes

    import llama_cpp

    path = folder / f"{ftype}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.allow_requantize, params.nthread = True, 2
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{ftype}")
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("ftype", "contexts"), [("Q4_0", [512, 2048]), ("Q4_K_M", [512]), ("Q8_0", [512]), ("F16", [512])])
def test_predicted_memory_is_what_a_child_process_takes(smol: Path, tmp_path: Path, ftype: str, contexts: list[int]) -> None:
    """Peak RSS of a child that fills its context. Done by hand up to 8,192, which takes minutes: within 0.7 %."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    import gguf

    path = _quantised(smol, tmp_path, ftype)
    rows = [
        row(t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, int(t.n_bytes))
        for t in gguf.GGUFReader(path).tensors
    ]
    predicted = footprint.memory(path.stat().st_size, rows, SMOLLM2, contexts, instruction_sets=machine.instruction_sets())
    for prediction in predicted:
        measured = json.loads(
            subprocess.run(
                [sys.executable, "-c", _CHILD, str(path), str(prediction.context)],
                check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
            ).stdout
        )  # fmt: skip
        error = prediction.total / measured - 1
        print(f"{ftype} {prediction.context}: {prediction.total >> 20} MiB of {measured >> 20}, {error:+.1%}")
        assert abs(error) < 0.03, (ftype, prediction, measured)


def adds(made: TargetRecord, uri: str, place: Path, context: int) -> tuple[Memory, Resident, int]:
    """What is predicted of an artefact below `place`, what a child process takes, and by how much it grows."""
    rows = [row(t.name, tuple(t.shape), t.type, t.nbytes) for t in made.tensors]
    nbytes = sum(file.nbytes for file in made.files if not file.name.endswith(".json"))
    snapshot = source.describe(uri)
    (prediction,) = requirements.predict(made.format, nbytes, rows, snapshot, [context])
    path, kind = next(place.glob(f"*/{made.file}")), quality.kind(snapshot)
    found = resident.measure(path, format=made.format, kind=kind, threads=2, context=context)
    return prediction, found, found.peak - found.before


@pytest.mark.slow
@pytest.mark.parametrize(("format", "type", "engine"), [("onnx", "INT8", "onnxruntime_genai")])
def test_what_a_model_adds_is_predicted(smollm2: str, tmp_path: Path, format: str, type: str, engine: str) -> None:
    pytest.importorskip(engine)
    target = quantkit.convert(smollm2, format=format, type=type, checks=False, work_dir=tmp_path, threads=2).targets[0]
    prediction, found, growth = adds(target, smollm2, tmp_path, 512)
    assert prediction.growth == pytest.approx(growth, rel=0.15), (prediction, found)


_WINDOWED = {"sliding_window": 1024, "max_position_embeddings": 8192}
_DEEP = {
    "sliding_window": 64, "max_position_embeddings": 8192, "num_hidden_layers": 12, "num_key_value_heads": 4,
    "head_dim": 128, "query_pre_attn_scalar": 128, "layer_types": ["sliding_attention"] * 11 + ["full_attention"],
}  # fmt: skip
_W4 = {"format": "gptq", "bits": 4, "group": 64}
_Q8 = {"format": "gguf", "type": "Q8_0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "name", "shape", "context"),
    [(_W4, "gemma3", _WINDOWED, 8192), (_Q8, "gemma3", _DEEP, 8192)],
    ids=["gptq", "gguf"],
)
def test_what_a_windowed_model_adds_is_predicted(
    target: dict[str, Any], name: str, shape: dict[str, Any], context: int, tmp_path: Path
) -> None:
    """A window's mask is three quarters of the first; a whole cache of every layer would be thrice what the second takes."""
    if target["format"] == "gguf":
        pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    model = str(make_pico(name, tmp_path / "model", **shape))
    recipe: dict[str, Any] = {"source": model, "targets": [target], "checks": False}
    if target["format"] == "gptq":
        recipe["calibration"] = {"text": "builtin:python-docs", "tokens": 512, "length": 256}
    (tmp_path / "random.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    made = quantkit.convert(tmp_path / "random.yaml", work_dir=tmp_path, threads=2).targets[0]
    prediction, found, growth = adds(made, model, tmp_path, context)
    assert prediction.growth == pytest.approx(growth, rel=0.1), (prediction, found)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["gguf", "onnx"])
@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_what_an_encoder_or_an_exported_model_adds_is_predicted(name: str, format: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp" if format == "gguf" else "onnxruntime")
    model = str(make_pico(name, tmp_path / "model", max_position_embeddings=1024))
    target = {"format": format, **({"type": "Q8_0"} if format == "gguf" else {"bits": 8})}
    (tmp_path / "random.yaml").write_text(json.dumps({"source": model, "targets": [target], "checks": False}), encoding="utf-8")
    made = quantkit.convert(tmp_path / "random.yaml", work_dir=tmp_path, threads=2).targets[0]
    prediction, found, growth = adds(made, model, tmp_path, 1024)
    assert prediction.growth == pytest.approx(growth, rel=0.2), (prediction, found)
