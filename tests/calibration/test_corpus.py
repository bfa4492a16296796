"""Texts cut into chunks, with and without a BOS token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, processors

from quantkit.calibration.corpus import ask, cut
from quantkit.errors import UnresolvedError
from quantkit.values import Tokenizer

WORDS = ["<unk>", "<s>", "<", "s", ">", *(f"w{index}" for index in range(40))]


def tokenizer(*, template: bool, config: dict[str, Any] | None = None) -> Tokenizer:
    engine = Engine(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens(["<unk>", "<s>"])
    if template:
        engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(json.loads(engine.to_str()), config or {}, None)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"w{index}" for index in range(40)))
    return path


def test_without_bos_the_text_is_cut_as_it_is(text: Path) -> None:
    tokens = cut(text, tokenizer(template=False), chunks=2, length=16)
    assert np.array_equal(tokens, np.arange(5, 37).reshape(2, 16))
    assert tokens.dtype == np.int32


def test_a_seed_chooses_among_all_pieces_of_the_text(text: Path) -> None:
    pieces = cut(text, tokenizer(template=False), chunks=10, length=4).tolist()
    chosen = [cut(text, tokenizer(template=False), chunks=3, length=4, seed=seed).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(piece in pieces for piece in chosen[0])
    assert chosen[0] == sorted(chosen[0]) != pieces[:3]
    assert cut(text, tokenizer(template=False), chunks=10, length=4, seed=5).tolist() == pieces


def test_bos_goes_before_the_text_and_replaces_the_first_token_of_every_chunk(text: Path) -> None:
    tokens = cut(text, tokenizer(template=True), chunks=2, length=16)
    assert tokens[0].tolist() == [1, *range(5, 20)]
    assert tokens[1].tolist() == [1, *range(21, 36)], "w15 lost its place to BOS"


@pytest.mark.parametrize(("template", "said"), [(True, False), (False, True)])
def test_the_configuration_decides_over_the_post_processor(text: Path, template: bool, said: bool) -> None:
    config = {"bos_token": {"content": "<s>"}, "add_bos_token": said}
    tokens = cut(text, tokenizer(template=template, config=config), chunks=2, length=16)
    assert (tokens[:, 0] == 1).all() == said


def test_names_of_special_tokens_in_the_text_are_text(tmp_path: Path) -> None:
    path = tmp_path / "tricky.txt"
    path.write_text("w0 <s> w1 w2")
    assert cut(path, tokenizer(template=False), chunks=1, length=6)[0].tolist() == [5, 2, 3, 4, 6, 7]


def test_a_short_text_says_what_it_has_and_what_is_needed(text: Path) -> None:
    with pytest.raises(UnresolvedError, match=r"is 40 tokens .* 3 chunks of 16 need 48: .* at most 2 chunks"):
        cut(text, tokenizer(template=False), chunks=3, length=16)


def test_an_encoder_gets_texts_begun_and_ended(text: Path) -> None:
    bert = tokenizer(template=True)
    found = ask("encoder", text, bert, chunks=2, length=16)
    assert found.decoder_tokens is None
    assert found.tokens.tolist() == [[1, *range(4 * piece + 6, 4 * piece + 9)] for piece in range(8)]
    both = {**bert.definition, "post_processor": json.loads(json.dumps(bert.definition["post_processor"]))}
    both["post_processor"]["single"].append({"SpecialToken": {"id": "<s>", "type_id": 0}})
    ended = ask("encoder", text, Tokenizer(both, {}, None), chunks=1, length=16).tokens
    assert ended[0].tolist() == [1, 6, 7, 1]


def test_a_decoder_of_two_goes_on_where_the_encoder_stopped(text: Path) -> None:
    found = ask("encoder-decoder", text, tokenizer(template=False), chunks=2, length=16, decoder_start=0)
    assert found.tokens.tolist() == [list(range(5, 13)), list(range(21, 29))]
    assert found.decoder_tokens is not None
    assert found.decoder_tokens.tolist() == [[0, *range(13, 20)], [0, *range(29, 36)]]


def test_a_decoder_gets_the_pieces_as_they_are(text: Path) -> None:
    found = ask("decoder", text, tokenizer(template=True), chunks=2, length=16)
    assert np.array_equal(found.tokens, cut(text, tokenizer(template=True), chunks=2, length=16))
