"""Importance matrices: what llama.cpp writes and reads, old and new, and what is refused."""

import struct

import gguf
import numpy as np
import pytest

from quantkit.codecs import imatrix
from quantkit.errors import SourceError
from quantkit.values import Importance

DICE = np.random.default_rng(0)
DENSE = Importance(DICE.chisquare(1, 64).astype(np.float32), DICE.standard_normal(64).astype(np.float32), np.array([512]))
STACK = Importance(DICE.chisquare(1, (3, 32)).astype(np.float32), None, np.array([7, 0, 9]))


def written(path, **found):
    entries = {f"blk.0.{name}.weight": value for name, value in found.items()}
    imatrix.write(path, entries, datasets=["a.txt"], chunks=4, chunk_size=128)
    return path


def test_what_is_written_comes_back(tmp_path):
    found = imatrix.read(written(tmp_path / "i.gguf", attn_q=DENSE, ffn_up_exps=STACK))
    dense, stack = found["blk.0.attn_q.weight"], found["blk.0.ffn_up_exps.weight"]
    np.testing.assert_allclose(dense.squares, DENSE.squares, rtol=1e-6)
    np.testing.assert_allclose(dense.means, DENSE.means, rtol=1e-6)
    np.testing.assert_allclose(stack.squares, STACK.squares, rtol=1e-6)
    assert stack.means is None
    assert stack.counts.tolist() == [7, 1, 9]


def test_the_file_is_laid_out_as_llama_imatrix_lays_it_out(tmp_path):
    reader = gguf.GGUFReader(written(tmp_path / "i.gguf", attn_q=DENSE, ffn_up_exps=STACK))
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt"]
    assert (reader.fields["imatrix.chunk_count"].contents(), reader.fields["imatrix.chunk_size"].contents()) == (4, 128)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    sums, counts = tensors["blk.0.ffn_up_exps.weight.in_sum2"], tensors["blk.0.ffn_up_exps.weight.counts"]
    assert (sums.shape.tolist(), counts.shape.tolist()) == ([32, 3], [1, 3])
    np.testing.assert_allclose(sums.data[2], 9 * STACK.squares[2], rtol=1e-6)


def test_an_older_file_is_read(tmp_path):
    values = (5 * STACK.squares).astype("<f4")
    name = b"blk.0.ffn_up_exps.weight"
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 5, values.size) + values.tobytes()
    (tmp_path / "i.dat").write_bytes(data + struct.pack("<ii", 4, 5) + b"a.txt")
    flat = imatrix.read(tmp_path / "i.dat")["blk.0.ffn_up_exps.weight"]
    stack = imatrix.fitted("blk.0.ffn_up_exps.weight", flat, 3, 32)
    np.testing.assert_allclose(stack.squares, STACK.squares, rtol=1e-6)
    assert imatrix.fitted("x", flat, 1, 96).squares.shape == (96,)
    with pytest.raises(SourceError, match="96 values for x, which has 2 x 32 columns: it was made of another model"):
        imatrix.fitted("x", flat, 2, 32)


def test_an_expert_without_rows_gets_what_the_others_saw(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "imatrix")
    writer.add_tensor("e.weight.in_sum2", np.array([[2, 4], [0, 0], [9, 3]], np.float32))
    writer.add_tensor("e.weight.counts", np.array([[2], [0], [3]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = imatrix.read(tmp_path / "i.gguf")["e.weight"]
    np.testing.assert_allclose(found.squares, [[1, 2], [2, 1.5], [3, 1]])
    assert found.counts.tolist() == [2, 0, 3]


def test_damaged_files_are_refused(tmp_path):
    whole = written(tmp_path / "i.gguf", attn_q=DENSE).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-200])
    with pytest.raises(SourceError, match="not float32 or not whole"):
        imatrix.read(tmp_path / "cut.gguf")
    (tmp_path / "x.dat").write_bytes(b"\x03\x00\x00\x00\x10\x00\x00\x00blk")
    with pytest.raises(SourceError, match="breaks off near byte"):
        imatrix.read(tmp_path / "x.dat")
    broken = Importance(np.full(32, np.nan, np.float32), None, np.array([1]))
    with pytest.raises(SourceError, match=r"blk\.0\.attn_q\.weight: values that are negative, infinite"):
        imatrix.read(written(tmp_path / "nan.gguf", attn_q=broken))
    with pytest.raises(SourceError, match="cannot be read"):
        imatrix.read(tmp_path / "absent.gguf")
