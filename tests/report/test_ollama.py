"""Modelfiles: Ollama's grammar reads back what was meant, and their templates give the checkpoint's own prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
from report import modelfiles
from report.chat_templates import (
    CHATML,
    GEMMA,
    GEMMA3,
    LLAMA2,
    LLAMA3,
    LLAMA31,
    MISTRAL,
    MISTRAL3,
    PHI3,
    PHI35,
    PLAIN,
    QWEN3,
    ZEPHYR,
)
from report.sample_manifest import sample

from quantkit import source
from quantkit.report import chat, ollama
from quantkit.values import Tokenizer

FAMILIES = {
    "chatml": (CHATML, "turn", ["<|im_start|>", "<|im_end|>"]),
    "qwen3": (QWEN3, "turn", ["<|im_start|>", "<|im_end|>"]),
    "llama3": (LLAMA3, "turn", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "llama3.1": (LLAMA31, "turn", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "mistral": (MISTRAL, "none", ["[INST]", "[/INST]"]),
    "mistral-v0.3": (MISTRAL3, "last", ["[INST]", "[/INST]"]),
    "llama2": (LLAMA2, "first", ["[INST]", "[/INST]", "<s>"]),
    "gemma": (GEMMA, "none", ["<start_of_turn>", "<end_of_turn>"]),
    "gemma3": (GEMMA3, "first", ["<start_of_turn>", "<end_of_turn>"]),
    "phi3": (PHI3, "none", ["<|user|>", "<|end|>", "<|assistant|>"]),
    "phi3.5": (PHI35, "turn", ["<|user|>", "<|end|>", "<|assistant|>"]),
    "zephyr": (ZEPHYR, "turn", ["<|user|>"]),
    "plain": (PLAIN, "turn", ["user:"]),
}
ASK, SYSTEM = ("user", 'Is {{ this }} a "test"?\n\nSay.'), ("system", "You answer\nin one word.")
CONVERSATIONS: list[list[modelfiles.Message]] = [
    [*head, *([ASK, ("assistant", "Yes; it\nis.")] * turns), ("user", "Sure?")]
    for head in ([], [SYSTEM])
    for turns in (0, 1, 3)
]


def tokenizer(template: str | None, **config: Any) -> Tokenizer:
    """A vocabulary of words with `<s>` before every text, and that template."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "<|eot_id|>": 4}
    added = [{"id": id, "content": text, "special": True} for text, id in words.items() if text.startswith("<")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{**token, **flags} for token in added],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    said = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, **config}
    return Tokenizer(definition, said, template)


def modelfile(template: str | None, ends: Any = (2, 4), licences: tuple[str, ...] = (), **config: Any) -> str:
    ids = {"eos_token_id": list(ends) if isinstance(ends, tuple) else ends}
    return ollama.modelfile(sample(), tokenizer(template, **config), ids, licences)


def theirs(template: str, messages: list[modelfiles.Message]) -> str:
    """The checkpoint's own prompt without the token that the engine puts before it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    listed = [{"role": role, "content": content} for role, content in messages]
    rendered = render_jinja_template(
        [listed], chat_template=template, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return str(rendered[0][0]).removeprefix("<s>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_in_go_gives_the_checkpoints_prompts(family: str) -> None:
    jinja, place, marks = FAMILIES[family]
    parsed = modelfiles.parse(modelfile(jinja))
    [template] = modelfiles.values(parsed, "template")
    form = chat.form(jinja, {"bos_token": "<s>", "eos_token": "</s>"}, "<s>")
    assert form is not None
    assert form.place == place
    assert template == chat.go(form)
    assert modelfiles.values(parsed, "stop")[:2] == ["</s>", "<|eot_id|>"]
    assert set(marks) <= set(modelfiles.values(parsed, "stop"))
    for messages in CONVERSATIONS:
        if messages[0] == SYSTEM and place == "none":
            assert "You answer\nin one word.\n\n" in modelfiles.prompt(template, messages)
        elif family != "llama3.1":
            assert modelfiles.prompt(template, messages) == theirs(jinja, messages)
        else:
            dated = jinja2.Environment(trim_blocks=True).from_string(jinja)
            listed = [{"role": role, "content": content} for role, content in messages]
            own = dated.render(messages=listed, add_generation_prompt=True, bos_token="<s>").removeprefix("<s>")
            assert modelfiles.prompt(template, messages) == own


def test_go_reads_the_templates_as_the_tests_do(tmp_path: Path) -> None:
    templates = [modelfiles.values(modelfiles.parse(modelfile(jinja)), "template")[0] for jinja, _, _ in FAMILIES.values()]
    cases = [(template, messages) for template in templates for messages in CONVERSATIONS]
    said = modelfiles.prompts_in_go(tmp_path, cases)
    if said is None:
        pytest.skip("Go is not installed: apt-get install golang-go")
    assert said == [modelfiles.prompt(*case) for case in cases]


def test_the_real_models_modelfile(smollm2: str) -> None:
    snapshot = source.describe(smollm2)
    assert snapshot.tokenizer is not None
    text = ollama.modelfile(sample(), snapshot.tokenizer, snapshot.generation_config, ["Apache"])
    parsed = modelfiles.parse(text)
    [template] = modelfiles.values(parsed, "template")
    assert "{{ if not .System }}<|im_start|>system\nYou are a helpful AI assistant named SmolLM" in template
    assert modelfiles.values(parsed, "stop") == ["<|im_end|>", "<|im_start|>"]
    own = theirs(str(snapshot.tokenizer.chat_template), CONVERSATIONS[1])
    assert modelfiles.prompt(template, CONVERSATIONS[1]) == own


@pytest.mark.parametrize(
    ("jinja", "why"),
    [
        (None, "# The model has no chat template."),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, "# No TEMPLATE: "),
        ("{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}", "# No TEMPLATE: "),
        ("{{ messages[0]['content'] }}", "# No TEMPLATE: "),
        ("{{ raise_exception('no') }}", "# No TEMPLATE: "),
        ("{% for", "# No TEMPLATE: "),
        (
            PHI35.replace("{{'<|'", "{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}{{'<|'"),
            "# No TEMPLATE: ",
        ),
        ("{{ messages[-1]['content'] | upper }}", "# No TEMPLATE: "),
        (CHATML.replace("<|im_end|>", '"""'), "# No TEMPLATE: "),
        (CHATML.replace("<|im_end|>", "\x07"), "# No TEMPLATE: "),
    ],
)
def test_what_is_not_recognised_is_left_out_and_said(jinja: str | None, why: str) -> None:
    text = modelfile(jinja)
    assert why in text
    parsed = modelfiles.parse(text)
    assert [name for name, _ in parsed] == ["from", "stop", "stop", "num_ctx"]


def test_the_token_before_a_text_is_left_to_the_engine_only_where_it_writes_it() -> None:
    for adds in (True, False):
        [template] = modelfiles.values(modelfiles.parse(modelfile(LLAMA3, add_bos_token=adds)), "template")
        said = modelfiles.prompt(template, CONVERSATIONS[1])
        assert said.startswith("<s>") != adds
    [template] = modelfiles.values(modelfiles.parse(modelfile(LLAMA3, add_bos_token=None)), "template")
    assert modelfiles.prompt(template, CONVERSATIONS[1]).startswith("<s>")


@pytest.mark.parametrize("ends", [2, None, (2, 4), (4,), (99,)])
def test_stops_are_the_ends_that_the_checkpoint_names(ends: Any) -> None:
    named = {2: "</s>", 4: "<|eot_id|>"}
    listed = ends if isinstance(ends, tuple) else (ends,)
    expected = list(dict.fromkeys(["</s>", *(named[end] for end in listed if end in named)]))
    assert modelfiles.values(modelfiles.parse(modelfile(None, ends)), "stop") == expected


@pytest.mark.parametrize(
    ("licence", "read"),
    [
        ("Apache License\n\n  Version 2.0\n", "Apache License\n\n  Version 2.0\n"),
        ("MIT", "MIT"),
        ('He said "yes"', 'He said "yes"'),
        ('"begins and ends"', '"begins and ends"'),
        ('code:\n"""\nFROM evil\n"""\nend', "code:\n'''\nFROM evil\n'''\nend"),
        ('"""', "'''"),
        ('one\n""""\ntwo', "one\n'''\"\ntwo"),
        ("page\x0cone\r\ntwo\tthree", "pageone\ntwo\tthree"),
        ("# no comment\nPARAMETER num_ctx 1", "# no comment\nPARAMETER num_ctx 1"),
    ],
)
def test_licences_are_read_back(licence: str, read: str) -> None:
    parsed = modelfiles.parse(modelfile(CHATML, licences=(licence, "NOTICE")))
    assert modelfiles.values(parsed, "license") == [read, "NOTICE"]
    assert modelfiles.values(parsed, "num_ctx") == ["8192"]
    assert len(modelfiles.values(parsed, "from")) == 1


def test_modelfile_takes_what_passed() -> None:
    text = ollama.modelfile(sample(), None, {}, ())
    assert text.splitlines() == [
        "# Written from the files beside it; Ollama itself was not run on them.",
        "FROM ./Sample-135M-Instruct-with-a-name-that-goes-on-Q4_K_M.gguf",
        "# also in this folder: Sample-135M-Instruct-with-a-name-that-goes-on-Q2_K.gguf",
        "# The model has no chat template.",
        "PARAMETER num_ctx 8192",
    ]


def test_a_split_file_is_said_to_be_one() -> None:
    manifest = sample()
    target = manifest.targets[0]
    target = target.model_copy(update={"files": target.files * 2})
    text = ollama.modelfile(manifest.model_copy(update={"targets": [target]}), None, {}, ())
    assert "# one of 2 parts: where Ollama wants one file, llama-gguf-split --merge joins them" in text


def test_num_ctx_is_the_models_own_limit_at_most() -> None:
    manifest = sample()
    short = manifest.model_copy(update={"source": manifest.source.model_copy(update={"context_length": 2048})})
    assert "PARAMETER num_ctx 2048\n" in ollama.modelfile(short, None, {}, ())
