"""Prompts through chat templates."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from tiny import tiny, write_llama
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from quantkit.checks.samples import answer, encode, render
from quantkit.engines import llama_cpp
from quantkit.errors import InputError, UnresolvedError
from quantkit.values import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ bos_token + 'system\nBe brief.' + eos_token }}{% endif %}\n"
    "{{ '<s>' + message['role'] + '\n' + message['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": False}


def tokenizer(template: str | None) -> Tokenizer:
    import json

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<unused{index}>" for index in range(41))]
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    engine = Engine(models.BPE(vocabulary, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(text, special=True) for text in ("<pad>", "<s>", "</s>")])
    return Tokenizer(json.loads(engine.to_str()), CONFIG, template)


def test_a_prompt_goes_through_the_template() -> None:
    rendered = render(tokenizer(CHATML), " What is a llama? ")
    assert rendered == "<s>system\nBe brief.</s><s>user\nWhat is a llama?</s><s>assistant\n"


def test_without_a_template_the_prompt_is_itself() -> None:
    assert render(tokenizer(None), " a {{ b }}") == " a {{ b }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('a system message is needed') }}", "a system message is needed"),
        ("{{ messages.__class__.__mro__ }}", "unsafe|undefined"),
        ("{% for message in messages %}", "end of template"),
    ],
)
def test_a_template_that_does_not_render_says_why(template: str, reason: str) -> None:
    with pytest.raises(UnresolvedError, match=reason):
        render(tokenizer(template), "a")


@pytest.mark.skipif(llama_cpp.available() is None, reason="llama-cpp-python is not installed")
def test_answers_are_the_runners_greedy_text(tmp_path: Path) -> None:
    _, _, weights = tiny("llama")
    path = tmp_path / "tiny.gguf"
    write_llama(path, weights.state, gguf.GGMLQuantizationType.F32)
    runner = llama_cpp.open_runner(path, context=128, threads=1)
    given = tokenizer(CHATML)
    first, second = answer(runner, given, encode(given, ["What is a llama?", "Why?"], 200), 6)
    again = answer(runner, given, encode(given, ["Why?"], 200), 6)[0]
    runner.close()
    assert (first != second, second) == (True, again), "one answer leaves nothing behind for the next"


@pytest.mark.parametrize("prompt", ["", "far too long"])
def test_a_prompt_that_cannot_be_answered(prompt: str) -> None:
    with pytest.raises(InputError, match="1 to 5 can be answered"):
        encode(tokenizer(None), ["Why?", prompt], 5)
