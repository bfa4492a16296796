"""The tokenizer check: llama.cpp on the real vocabulary and on a pico one, and a vocabulary with the wrong rules."""

import gguf
import pytest

from quantkit import source
from quantkit.calibration import corpus
from quantkit.checks import tokenizer
from quantkit.codecs import gguf_kv, gguf_vocab
from quantkit.engines import llama_cpp

pytest.importorskip("llama_cpp")


def vocabulary(snapshot, path, pre=None):
    """A file with a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    gguf_kv.write(writer, gguf_vocab.encode(snapshot.tokenizer, snapshot.config, snapshot.generation_config, pre))
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def checked(snapshot, path):
    with llama_cpp.vocabulary(path) as found:
        return tokenizer.check(corpus.tokenize(snapshot.tokenizer), found, llama_cpp.name())


def test_the_real_vocabulary_cuts_as_its_tokenizer(smollm2):
    snapshot = source.describe(smollm2)
    with llama_cpp.vocabulary(source.describe(smollm2).weights.files[0]) as found:
        result = tokenizer.check(corpus.tokenize(snapshot.tokenizer), found, llama_cpp.name())
    assert result.verdict == "pass", result.summary
    assert result.values["tokens"] > 300


def test_a_pico_vocabulary_cuts_as_its_tokenizer(pico, tmp_path):
    snapshot = source.describe(str(pico("llama")))
    result = checked(snapshot, vocabulary(snapshot, tmp_path / "v.gguf"))
    assert result.verdict == "pass", result.summary


def test_a_wrong_pre_tokenizer_fails_and_says_where(pico, tmp_path):
    snapshot = source.describe(str(pico("llama")))
    result = checked(snapshot, vocabulary(snapshot, tmp_path / "v.gguf", pre="gpt-2"))
    assert result.verdict == "fail"
    assert "texts are cut otherwise" in result.summary
    assert "at token" in result.summary


def test_a_known_difference_is_reported_with_its_reason():
    result = tokenizer.check(lambda text: [len(text)], lambda _: [0], "engine", "it knows no case")
    assert result.verdict == "report"
    assert result.summary.endswith("(it knows no case)")
