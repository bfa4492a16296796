"""transformers with optimum and gptqmodel, in an environment of their own, read our checkpoints and give our logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit import source
from quantkit.engines import torch_blocks, transformers_speed

READER = Path(__file__).resolve().parents[3] / ".venv-reader"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (READER / ".ready").exists(), reason="the reader's environment is not there: make setup-reader"),
]

SCRIPT = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

found = {}
tokens = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval()
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name.endswith(("q_proj", "down_proj"))}
    with torch.no_grad():
        logits = model(tokens).logits
    generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    text = generate("The sea", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    np.save(folder + "/logits.npy", logits.float().numpy())
    found[folder] = {"kinds": kinds, "text": text}
print("FOUND" + json.dumps(found))
"""


def test_transformers_gives_our_logits(pico: Callable[[str], Path], tmp_path: Path) -> None:
    # Of whole rows in 4 bits gptqmodel's kernel for CPUs takes none; compressed-tensors 0.20.0 does not load in transformers
    # what it writes itself with zeros of their own (it forgets to pack them where it makes room).
    targets = [
        "bits: 4, group: 64", "bits: 4, group: 128, sym: false", "bits: 3, group: 32", "bits: 2, group: 32",
        "bits: 8, group: 64", "bits: 8, group: -1", "bits: 4, group: 64, quality: high",
        "bits: 4, group: 64, layout: compressed-tensors", "bits: 8, group: -1, layout: compressed-tensors",
    ]  # fmt: skip
    lines = "".join(f"  - {{format: gptq, {target}}}\n" for target in targets)
    path = tmp_path / "readers.yaml"
    calibration = "calibration: {text: 'builtin:python-docs', tokens: 1024}\n"
    path.write_text(f"source: {pico('llama')}\ntargets:\n{lines}{calibration}checks: false\n")
    manifest = quantkit.convert(path, work_dir=tmp_path, threads=2)
    folders = [str((tmp_path / "readers" / target.file).parent) for target in manifest.targets]
    tokens = np.random.default_rng(0).integers(3, 290, (2, 48)).astype(np.int32)
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    command = [str(READER / "bin" / "python"), "-c", SCRIPT, json.dumps(tokens.tolist()), *folders]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    said = json.loads(next(line for line in child.stdout.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    for folder in folders:
        found = source.describe(folder)
        logits = torch_blocks.logits(found.config, found.weights, tokens, threads=2)
        wanted, theirs = np.stack([logits(0), logits(1)]), np.load(f"{folder}/logits.npy")
        linear = "Linear" in said[folder]["kinds"].values()
        assert linear == ("compressed-tensors" in folder), "others are gptqmodel's"
        # its kernel for 4 bits computes in bfloat16
        assert np.square(wanted - theirs).sum() / np.square(wanted).sum() < 2e-4, folder
        assert said[folder]["text"].startswith("The sea")


def test_a_checkpoint_is_timed_in_transformers(
    pico: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where optimum and gptqmodel are installed beside quantkit: the child that measures runs in their environment."""
    monkeypatch.setattr(transformers_speed, "available", lambda: True)
    monkeypatch.setattr(sys, "executable", str(READER / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", str(READER.parent))
    path = tmp_path / "timed.yaml"
    path.write_text(
        f"source: {pico('llama')}\ntargets:\n  - {{format: gptq, bits: 4, group: 64}}\n"
        "calibration: {text: 'builtin:python-docs', tokens: 1024}\n"
        "checks:\n  perplexity: {chunks: 2}\n  latency: {rounds: 1, prompt: 32, decode: 8, min_decode_ratio: 0.0001}\n"
        "  memory: {contexts: [512]}\n"
    )
    target = quantkit.convert(path, work_dir=tmp_path, threads=2).targets[0]
    timed = next(check for check in target.checks if check.check == "latency")
    assert (timed.verdict, timed.engine.partition(".")[0]) == ("pass", "transformers 5")
    assert timed.values["decode_ratio"] > 0
    assert target.speed is not None
    assert target.baseline is not None
    assert (target.speed.decode_tokens, target.baseline_label) == (8, "the source, in transformers")
