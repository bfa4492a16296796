"""The mixture rules against llama.cpp's own golden files, and the fallback ladder."""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

from quantkit import source
from quantkit.errors import InputError
from quantkit.formats.gguf import layout, writer
from quantkit.formats.gguf.mixture import FILE_TYPE, Model, Wish, choose, more_bits
from quantkit.progress import silent
from quantkit.targets import GGUF_TYPES, GgufTarget

GOLDEN = Path(__file__).parents[4] / "shared" / "vectors" / "type-selection"
SCHEMAS = sorted(GOLDEN.glob("*.schema"))


def dense_shapes(hidden, inner, vocab, layers, heads, kv_heads, tied=False):
    """A dense decoder's tensors under GGUF names; only names, widths and their order matter to the rules."""
    shapes = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocab, hidden)
    kv = hidden // heads * kv_heads
    for i in range(layers):
        block = {
            "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (kv, hidden),
            "attn_v": (kv, hidden), "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def sections(text):
    """{file type: (default, {tensor: type})} of a golden file."""
    found, current = {}, None
    for line in text.splitlines():
        if head := re.match(r"\[(\S+)\] (\S+)", line):
            current = found[head[1]] = (head[2].upper(), {})
        elif line and not line.startswith("#") and current is not None:
            name, kind = line.split()
            current[1][name] = kind.upper()
    return found


@pytest.mark.skipif(not SCHEMAS, reason="llama.cpp's golden type-selection files are not beside this checkout")
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: path.stem)
@pytest.mark.parametrize("file_type", GGUF_TYPES)
def test_equals_llama_cpp_tensor_for_tensor(schema, file_type):
    text = schema.read_text()
    shape = {key: int(value) for key, value in re.findall(r"(n_\w+)=(\d+)", text)}
    if file_type not in sections(text):
        pytest.skip(f"{schema.name} does not list {file_type}")
    default, exceptions = sections(text)[file_type]
    tied = not any(name == "output.weight" for _, named in sections(text).values() for name in named)
    shapes = dense_shapes(
        shape["n_embd"], shape["n_ff"], shape["n_vocab"], shape["n_layer"], shape["n_head"], shape["n_head_kv"], tied
    )
    architecture = "llama" if "llama" in schema.stem else schema.stem.split("-")[0]
    model = Model(architecture, shape["n_layer"], shape["n_head"], shape["n_head_kv"])
    ours = choose(file_type, shapes, model, imatrix=False)
    weights = {name: choice.type for name, choice in ours.items() if len(shapes[name]) > 1}
    assert weights == {name: exceptions.get(name, default) for name in weights}
    assert set(exceptions) <= set(weights)


def test_fallback_is_named_with_its_reason():
    ours = choose("Q4_K_M", dense_shapes(576, 1536, 49152, 30, 9, 3, tied=True), Model("llama", 30, 9, 3), imatrix=False)
    query = ours["blk.0.attn_q.weight"]
    assert (query.type, query.wanted) == ("Q5_0", "Q4_K")
    assert "576" in query.reason
    assert "256" in query.reason
    assert ours["blk.0.attn_v.weight"].type == "Q8_0"  # wanted Q6_K
    assert ours["blk.0.ffn_down.weight"].type == "Q6_K"  # 1536 columns fit
    assert ours["token_embd.weight"].type == "Q8_0"
    assert ours["token_embd.weight"].wanted == "Q8_0"  # llama.cpp's rule for a head, not a fallback


def test_rows_that_fit_no_block_become_f16():
    ours = choose("Q8_0", {"blk.0.ffn_up.weight": (8, 40)}, Model("llama", 1), imatrix=False)
    assert ours["blk.0.ffn_up.weight"].type == "F16"


def test_more_bits_for_32_layers():
    assert [i for i in range(32) if more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def fused_shapes(hidden, inner, layers):
    """gpt-neox's names: one matrix for q, k and v, a position table, no gate."""
    shapes = {"token_embd.weight": (64, hidden), "position_embd.weight": (64, hidden), "output.weight": (64, hidden)}
    for i in range(layers):
        block = {"attn_qkv": (3 * hidden, hidden), "attn_output": (hidden, hidden), "ffn_up": (inner, hidden),
                 "ffn_down": (hidden, inner)}  # fmt: skip
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def expert_shapes(hidden, inner, layers, experts):
    shapes = dense_shapes(hidden, inner, 64, layers, 4, 1)
    for i in range(layers):
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            rows, width = shapes.pop(f"blk.{i}.{name}.weight")
            shapes[f"blk.{i}.{name}_exps.weight"] = (experts, rows, width)
        shapes[f"blk.{i}.ffn_gate_inp.weight"] = (experts, hidden)
    return shapes


CASES = {
    "dense": (dense_shapes(256, 512, 64, 9, 4, 4), Model("llama", 9, 4, 4)),
    "shared heads": (dense_shapes(256, 512, 64, 16, 4, 1), Model("llama", 16, 4, 1)),
    "tied": (dense_shapes(256, 512, 64, 2, 4, 2, tied=True), Model("llama", 2, 4, 2)),
    "odd widths": (dense_shapes(96, 160, 64, 8, 4, 1), Model("llama", 8, 4, 1)),
    "odd and tied": (dense_shapes(96, 512, 64, 3, 4, 1, tied=True), Model("llama", 3, 4, 1)),
    "no blocks": (dense_shapes(40, 72, 64, 2, 2, 2), Model("llama", 2, 2, 2)),
    "eighty layers": (dense_shapes(32, 32, 64, 80, 4, 1), Model("llama", 80, 4, 1)),
    "qwen2": (dense_shapes(256, 256, 64, 5, 4, 2), Model("qwen2", 5, 4, 2)),
    "eight experts": (expert_shapes(256, 256, 9, 8), Model("llama", 9, 4, 1, 8)),
    "four experts": (expert_shapes(256, 256, 4, 4), Model("llama", 4, 4, 1, 4)),
    "fused": (fused_shapes(256, 512, 8), Model("gptneox", 8, 4, 4)),
    "falcon": (fused_shapes(256, 512, 16), Model("falcon", 16, 4, 1)),
}


QUICK = ("tied", "odd and tied", "four experts")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """An F16 file of every case, with no more metadata than llama.cpp's quantiser asks for."""
    gguf = pytest.importorskip("gguf")
    place, made = tmp_path_factory.mktemp("originals"), {}
    for name, (shapes, model) in CASES.items():
        made[name] = place / f"{name}.gguf"
        writer = gguf.GGUFWriter(made[name], model.architecture)
        writer.add_block_count(model.layers)
        writer.add_context_length(64)
        writer.add_embedding_length(shapes["token_embd.weight"][1])
        writer.add_feed_forward_length(512)
        writer.add_head_count(model.heads)
        writer.add_head_count_kv(model.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        writer.add_rope_dimension_count(shapes["token_embd.weight"][1] // model.heads)
        writer.add_parallel_residual(True)
        writer.add_vocab_size(64)
        if model.experts:
            writer.add_expert_count(model.experts)
            writer.add_expert_used_count(2)
        dice = np.random.default_rng(0)
        for tensor, shape in shapes.items():
            kind = np.float16 if len(shape) > 1 and "ffn_gate_inp" not in tensor and "position" not in tensor else np.float32
            writer.add_tensor(tensor, dice.standard_normal(shape).astype(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return made


def quantised(library, original, out, file_type, shapes, imatrix):
    """What llama_model_quantize makes of a file: {tensor: type}, or None where it refuses."""
    import gguf

    params = library.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, FILE_TYPE[file_type]
    matrices = {name: np.ones(shape[-1] * (shape[0] if len(shape) == 3 else 1), np.float32) for name, shape in shapes.items()}
    entries = (library.llama_model_imatrix_data * (len(matrices) + 1))()
    for entry, (name, values) in zip(entries, matrices.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if imatrix:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(library.llama_model_imatrix_data))
    if library.llama_model_quantize(str(original).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        return None
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}


@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_equals_what_llama_cpp_makes(originals, tmp_path, case, imatrix):
    pytest.importorskip("llama_cpp")
    from quantkit.engines.llama_cpp import load_library

    library, (shapes, model) = load_library(), CASES[case]
    for file_type in GGUF_TYPES:
        if file_type in ("F32", "F16", "BF16"):
            continue
        theirs = quantised(library, originals[case], tmp_path / "out.gguf", file_type, shapes, imatrix)
        if file_type == "Q2_K_S" and not imatrix:
            assert theirs is None or case in ("no blocks", "eighty layers", "odd widths", "odd and tied")
            continue
        ours = {name: choice.type for name, choice in choose(file_type, shapes, model, imatrix=imatrix).items()}
        assert ours == theirs, file_type


def test_rules_come_first_and_the_first_match_counts():
    shapes = dense_shapes(256, 512, 64, 3, 4, 2)
    rules = (("blk.1.ffn_*", "Q8_0"), ("blk.*.ffn_down", "Q6_K"), ("output", "Q5_K"))
    ours = choose("Q4_K_M", shapes, Model("llama", 3, 4, 2), imatrix=False, wish=Wish(rules, output="Q8_0", token_embd="F16"))
    assert ours["blk.1.ffn_down.weight"].type == ours["blk.1.ffn_up.weight"].type == "Q8_0"
    assert ours["blk.0.ffn_down.weight"].type == ours["blk.2.ffn_down.weight"].type == "Q6_K"
    assert (ours["output.weight"].type, ours["token_embd.weight"].type) == ("Q8_0", "F16")
    assert "rule 'blk.1.ffn_*'" in ours["blk.1.ffn_up.weight"].reason
    pure = choose("Q4_K_M", shapes, Model("llama", 3, 4, 2), imatrix=False, wish=Wish(pure=True))
    assert {choice.type for name, choice in pure.items() if len(shapes[name]) > 1} == {"Q4_K"}


def test_a_rule_falls_back_where_its_type_does_not_fit():
    wish = Wish((("blk.*.attn_q", "Q4_K"),))
    ours = choose("Q8_0", dense_shapes(96, 160, 64, 1, 4, 1), Model("llama", 1, 4, 1), imatrix=False, wish=wish)
    assert (ours["blk.0.attn_q.weight"].type, ours["blk.0.attn_q.weight"].wanted) == ("Q5_0", "Q4_K")


def test_rules_that_match_nothing_are_named_with_what_is_near():
    shapes = dense_shapes(256, 512, 64, 3, 4, 2)
    wish = Wish((("blk.*.ffn_dawn", "Q8_0"), ("blk.*.ffn_up", "Q6_K"), ("lm_head", "Q6_K")))
    with pytest.raises(InputError, match=r"'blk\.\*\.ffn_dawn' \(near: blk\.\*\.ffn_down\.weight.*'lm_head'"):
        choose("Q4_K_M", shapes, Model("llama", 3, 4, 2), imatrix=False, wish=wish)


@pytest.mark.parametrize("name", ["bert", "t5-1.1", "gpt2"])
def test_files_of_every_kind_get_what_llama_cpp_gives_them(pico, tmp_path, name):
    gguf, _ = pytest.importorskip("gguf"), pytest.importorskip("llama_cpp")
    from quantkit.engines.llama_cpp import load_library

    library, snapshot = load_library(), source.describe(str(pico(name)))
    plan = layout.plan(GgufTarget(format="gguf", type="F16"), "", snapshot, "original")
    original = writer.write(plan, snapshot, tmp_path, importance={}, threads=1, progress=silent).path
    for file_type in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_L", "Q2_K"):
        params = library.llama_model_quantize_default_params()
        params.nthread, params.ftype = 1, FILE_TYPE[file_type]
        made = str(tmp_path / "made.gguf").encode()
        assert library.llama_model_quantize(str(original).encode(), made, ctypes.byref(params)) == 0
        theirs = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "made.gguf").tensors}
        rows = layout.plan(GgufTarget(format="gguf", type=file_type), "", snapshot, "ours").rows
        assert {row.name: row.type for row in rows} == theirs, file_type
