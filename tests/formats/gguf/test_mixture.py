"""The mixture rules against llama.cpp's own golden files, and the fallback ladder."""

import re
from pathlib import Path

import pytest

from quantkit.formats.gguf.mixture import choose, more_bits
from quantkit.recipe import GGUF_TYPES

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
    default, exceptions = sections(text)[file_type]
    tied = not any(name == "output.weight" for _, named in sections(text).values() for name in named)
    shapes = dense_shapes(
        shape["n_embd"], shape["n_ff"], shape["n_vocab"], shape["n_layer"], shape["n_head"], shape["n_head_kv"], tied
    )
    architecture = "llama" if "llama" in schema.stem else schema.stem.split("-")[0]
    ours = choose(file_type, shapes, shape["n_layer"], architecture=architecture, imatrix=False)
    weights = {name: choice.type for name, choice in ours.items() if len(shapes[name]) > 1}
    assert weights == {name: exceptions.get(name, default) for name in weights}
    assert set(exceptions) <= set(weights)


def test_fallback_is_named_with_its_reason():
    ours = choose("Q4_K_M", dense_shapes(576, 1536, 49152, 30, 9, 3, tied=True), 30, architecture="llama", imatrix=False)
    query = ours["blk.0.attn_q.weight"]
    assert (query.type, query.wanted) == ("Q5_0", "Q4_K")
    assert "576" in query.reason
    assert "256" in query.reason
    assert ours["blk.0.attn_v.weight"].type == "Q8_0"  # wanted Q6_K
    assert ours["blk.0.ffn_down.weight"].type == "Q6_K"  # 1536 columns fit
    assert ours["token_embd.weight"].type == "Q8_0"
    assert ours["token_embd.weight"].wanted == "Q8_0"  # llama.cpp's rule for a head, not a fallback


def test_rows_that_fit_no_block_become_f16():
    ours = choose("Q8_0", {"blk.0.ffn_up.weight": (8, 40)}, 1, architecture="llama", imatrix=False)
    assert ours["blk.0.ffn_up.weight"].type == "F16"


def test_more_bits_for_32_layers():
    assert [i for i in range(32) if more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
