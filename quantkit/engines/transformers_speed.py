"""Speed and memory of a checkpoint's folder in transformers, from a process of its own; of GPTQ's with optimum and gptqmodel.

`python -m quantkit.engines.transformers_speed --folder F` measures one folder: one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from quantkit.engines import children
from quantkit.values import Speed

_WARM_UP_TOKENS = 16
_READERS = ("optimum", "gptqmodel")
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2"}


def available() -> bool:
    """Whether what transformers reads GPTQ checkpoints with is installed beside quantkit."""
    return all(find_spec(name) is not None for name in _READERS)


def measure(folder: Path, *, threads: int, prompt: int, decode: int) -> Speed:
    """Speed and peak memory of one folder, from one child process; see `_measure` for what is timed. Errors as of
    children.measure."""
    options: dict[str, str | int] = {"folder": str(folder), "threads": threads, "prompt": prompt, "decode": decode}
    return children.measure("quantkit.engines.transformers_speed", folder, options, _ENVIRONMENT)


def _measure(folder: Path, threads: int, prompt: int, decode: int) -> Speed:
    """Load, warm up, prefill `prompt` tokens in one forward, then `decode` tokens one at a time, each the likeliest.

    Times and memory as of llama_cpp_speed.measure. Tokens are arbitrary: speed does not depend on them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu").eval()
    loaded = time.perf_counter()
    tokens = torch.tensor([children.tokens(prompt, model.config.vocab_size)])
    with torch.no_grad():
        model.generate(tokens[:, :_WARM_UP_TOKENS], max_new_tokens=4, do_sample=False, pad_token_id=0)
        warm = time.perf_counter()
        output = model(tokens, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(decode):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        end = time.perf_counter()
    engine = f"transformers {version('transformers')}"
    return children.speed(engine, threads, prompt, decode, (begin, loaded, warm, first, first, end))


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantkit.engines.transformers_speed")
    parser.add_argument("--folder", type=Path, required=True)
    for name, default in (("threads", 2), ("prompt", 256), ("decode", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(json.dumps(asdict(_measure(given.folder, given.threads, given.prompt, given.decode))))


if __name__ == "__main__":
    _main()
