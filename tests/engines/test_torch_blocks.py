"""A written GGUF in both engines: torch, block by block, and llama.cpp, which rounds activations to 8 bits."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

import quantkit
from quantkit import heads, source, walk
from quantkit.calibration import corpus
from quantkit.checks import scoring
from quantkit.checks.verdict import estimate
from quantkit.engines import llama_cpp, torch_blocks
from quantkit.source import text

ROUNDING = 0.005  # nats, of activations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(llama_cpp.available() is None, reason="llama-cpp-python is not installed"),
]


def test_both_engines_agree_on_the_divergence_of_gptq_s_codes(smollm2: str, tmp_path: Path) -> None:
    document = {
        "source": smollm2,
        "targets": [{"format": "gguf", "type": "Q4_0", "codes": "gptq"}],
        "calibration": {"text": "builtin:python-docs", "tokens": 4096},
        "checks": False,
    }
    recipe = tmp_path / "smol.yaml"
    recipe.write_text(json.dumps(document), encoding="utf-8")
    manifest = quantkit.convert(recipe, work_dir=tmp_path, threads=2)
    path = tmp_path / "smol" / manifest.targets[0].file
    original, written = source.describe(smollm2), source.describe(str(path))
    assert original.tokenizer is not None
    tokens = corpus.cut(text.fetch("builtin:python-docs", tmp_path).path, original.tokenizer, chunks=4, length=512)
    hidden = walk.walk(original.config, original.weights, tokens, threads=2)
    head = heads.project(original.config, original.weights, threads=2)
    torch_logits = torch_blocks.logits(written.config, written.weights, tokens, threads=2)
    torch_scores = scoring.score(torch_logits, tokens, hidden, head, first=256, engine=torch_blocks.name())
    with closing(llama_cpp.open_runner(path, context=512, threads=2)) as runner:
        llama_scores = scoring.score(
            lambda index: runner.logits(tokens[index].tolist()), tokens, hidden, head, first=256, engine=runner.engine
        )
    for snapshot in (original, written):
        snapshot.weights.close()
    apart = estimate(torch_scores.kld - llama_scores.kld)  # chunk by chunk: its error is below either's own
    assert 0.01 < estimate(torch_scores.kld).mean < 0.5
    assert abs(apart.mean) <= 2 * apart.error + ROUNDING
