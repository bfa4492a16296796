"""Multiple choice over a text: what is asked, how it is answered, and what a gate makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import TEXT, byte_level_tokenizer
from vocabularies import engine

from quantkit.checks import cloze
from quantkit.checks.scoring import Questions, Scores, score
from quantkit.values import F32, Tokenizer

FIRST = 8
WORDS = [word for word in TEXT.split() if word.isalpha()]


@pytest.fixture(scope="module")
def asked() -> tuple[Tokenizer, np.ndarray, Questions]:
    trained = byte_level_tokenizer()
    dice = np.random.default_rng(3)
    ids = trained.encode("x " + " ".join(dice.choice(WORDS, 4000)), add_special_tokens=False).ids
    tokens = np.array(ids[: 6 * 64], np.int32).reshape(6, 64)
    tokenizer = Tokenizer(json.loads(trained.to_str()), {}, None)
    questions = cloze.ask(tokens, tokenizer, first=FIRST)
    assert questions is not None
    return tokenizer, tokens, questions


def test_every_question_is_a_word_of_the_text_among_four_different(asked: tuple[Tokenizer, np.ndarray, Questions]) -> None:
    tokenizer, tokens, questions = asked
    scored = tokens[:, FIRST + 1 :]
    assert questions.options.shape == (*questions.positions.shape, 4)
    assert 1 <= questions.positions.shape[1] <= cloze.PER_CHUNK
    np.testing.assert_array_equal(questions.options[..., 0], np.take_along_axis(scored, questions.positions, 1))
    assert all(len(set(four)) == 4 for chunk in questions.options.tolist() for four in chunk)
    assert all(len(set(chunk)) == len(chunk) for chunk in questions.positions.tolist()), "no place is asked of twice"
    assert set(questions.options.ravel().tolist()) <= set(scored.ravel().tolist())
    names = {number: name for name, number in tokenizer.definition["model"]["vocab"].items()}
    for token in set(questions.options.ravel().tolist()):
        assert names[token][0] == "Ġ"
        word = engine(tokenizer.definition).decode([token])[1:]
        assert word.isalpha()
        assert len(word) >= cloze.LETTERS


def test_questions_are_the_same_every_time_and_others_with_another_seed(
    asked: tuple[Tokenizer, np.ndarray, Questions],
) -> None:
    tokenizer, tokens, questions = asked
    again, other = (cloze.ask(tokens, tokenizer, first=FIRST, seed=seed) for seed in (0, 1))
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(questions.options, again.options)
    assert not np.array_equal(questions.options, other.options)


def test_a_text_without_words_is_not_asked_about(asked: tuple[Tokenizer, np.ndarray, Questions]) -> None:
    tokenizer, tokens, _ = asked
    assert cloze.ask(np.full_like(tokens, tokens[0, 0]), tokenizer, first=FIRST) is None


def test_answers_come_from_the_logits_that_are_scored(asked: tuple[Tokenizer, np.ndarray, Questions]) -> None:
    tokenizer, tokens, questions = asked
    width = len(tokenizer.definition["model"]["vocab"])
    dice = np.random.default_rng(4)
    hidden = dice.standard_normal((*tokens.shape, width)).astype(np.float32)

    def artefact(index: int) -> F32:
        logits = hidden[index].copy()
        logits[np.arange(63), tokens[index, 1:]] = 100.0  # it knows what follows
        logits[FIRST + questions.positions[index, 0]] = 0.0  # but for one place, where all are equal
        return logits

    found = score(artefact, tokens, hidden, lambda rows: rows, first=FIRST, engine="an engine", questions=questions)
    assert found.right_artefact is not None
    assert found.right_reference is not None
    assert not found.right_artefact[:, 0].any(), "a tie is no answer"
    assert found.right_artefact[:, 1:].all()
    for chunk in range(len(tokens)):
        for at, four, right in zip(
            questions.positions[chunk], questions.options[chunk], found.right_reference[chunk], strict=True
        ):
            assert right == (hidden[chunk, FIRST + at, four].argmax() == 0)
    assert score(artefact, tokens, hidden, lambda rows: rows, first=FIRST, engine="an engine").right_artefact is None


def answered(artefact: float, original: float, *, chunks: int = 16) -> Scores:
    dice = np.random.default_rng(5)
    drawn = dice.random((chunks, 64))
    nothing = np.zeros((chunks, 2))
    return Scores(nothing, nothing, nothing, nothing < 1, "an engine", drawn < original, drawn < artefact)


def test_the_difference_is_paired() -> None:
    scores = answered(0.78, 0.80)
    assert scores.right_artefact is not None
    assert scores.right_reference is not None
    values = cloze.check(scores).values
    each = scores.right_artefact.mean(1) - scores.right_reference.mean(1)
    assert values["accuracy"] == pytest.approx(scores.right_artefact.mean())
    assert values["difference"] == pytest.approx(each.mean())
    assert values["difference_error"] == pytest.approx(each.std(ddof=1) / 4)
    assert float(values["difference_error"]) < float(values["accuracy_error"]) / 2
    assert values["questions"] == 16 * 64


@pytest.mark.parametrize(("ratio", "verdict"), [(0.9, "pass"), (0.999, "fail"), (0.96, "unresolved"), (None, "report")])
def test_a_gate_is_on_the_ratio(ratio: float | None, verdict: str) -> None:
    result = cloze.check(answered(0.78, 0.80), min_ratio=ratio)
    assert result.verdict == verdict
    assert result.limits == ({} if ratio is None else {"min_ratio": ratio})


def test_without_questions_a_gate_cannot_be_decided() -> None:
    nothing = np.zeros((2, 2))
    scores = Scores(nothing, nothing, nothing, nothing < 1, "an engine")
    assert cloze.check(scores).verdict == "report"
    assert cloze.check(scores, min_ratio=0.9).verdict == "unresolved"


def test_chunk_means_average_to_the_accuracies() -> None:
    result = cloze.check(answered(0.7, 0.8))
    assert np.mean(result.chunk_means["right"]) == pytest.approx(result.values["accuracy"])
    assert np.mean(result.chunk_means["right_reference"]) == pytest.approx(result.values["reference_accuracy"])
