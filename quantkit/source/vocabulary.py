"""Tokenizers without a tokenizer.json: SentencePiece's model, BERT's vocab.txt, GPT-2's vocab.json with merges.txt, Marian's
vocab.json with source.spm.

Their tokens are laid out as a GGUF has them, of which gguf_vocab makes a definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.codecs import gguf_tokens, gguf_vocab, gguf_wordpiece
from quantkit.codecs.gguf_special import GGML, SPECIAL, content
from quantkit.codecs.gguf_tokens import CONTROL, NORMAL, SPACE, UNUSED, USER_DEFINED
from quantkit.errors import SourceError, UnsupportedError
from quantkit.source import documents, sentencepiece
from quantkit.values import Tokenizer

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_MARIAN = "source.spm"
FILES = (*_SENTENCEPIECE, _MARIAN, "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")
_FOREIGN = -1e4  # score per character of a piece that only translations have: taken where the source's pieces fail
_PRE = {"GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2", "RobertaTokenizer": "gpt-2", "BartTokenizer": "gpt-2",
        "Qwen2Tokenizer": "qwen2"}  # fmt: skip
_ENDED = ("RobertaTokenizer", "BartTokenizer", "XLMRobertaTokenizer")  # <s> before a text, </s> after it
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_ROBERTA = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
    "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
MOST_TOKENS = 1 << 22  # ids beyond it are damaged: the largest vocabulary known ends at 262,208
_REMEDY = "load it with transformers and save it beside the weights, which writes tokenizer.json"


@dataclass(slots=True)
class _Table:
    """A vocabulary as a GGUF lays it out: `pairs` without their prefix, `named` as tokenizer_config.json names tokens."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    pairs: dict[str, Any]
    named: dict[str, str]


def read(folder: Path, config: Mapping[str, Any], added: Mapping[str, int]) -> Tokenizer | None:
    """The tokenizer of a folder without tokenizer.json; None if there is none at all. No chat template.

    config: tokenizer_config.json; added: added_tokens.json. Raises SourceError, UnsupportedError.
    """
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    model = next((name for name in _SENTENCEPIECE if (folder / name).is_file()), None)
    if model is not None:
        table = _sentencepiece(sentencepiece.parse(documents.read_bytes(folder / model), model), kind, config, model)
    elif (folder / _MARIAN).is_file():
        table = _marian(sentencepiece.parse(documents.read_bytes(folder / _MARIAN), _MARIAN), _numbers(folder))
    elif (folder / "vocab.txt").is_file():
        table = _wordpiece(documents.read_text(folder / "vocab.txt", documents.TABLE), kind, config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        table = _byte_level(folder, kind, config)
    else:
        return None
    named = {name: text for name in SPECIAL if (text := content(config.get(name)))}
    table.named |= named
    for text, number in added.items():
        _place(table, number, text, special=text in table.named.values())
    for digits, token in config.get("added_tokens_decoder", {}).items():
        if not digits.isdecimal() or len(digits) > 9 or not isinstance(token, Mapping):
            raise SourceError(f"tokenizer_config.json: added_tokens_decoder has no token {digits[:40]!r}; fetch it again")
        _place(table, int(digits), token.get("content", ""), special=bool(token.get("special")))
    return _decoded(table, config)


def _place(table: _Table, number: int, text: str, *, special: bool) -> None:
    if type(number) is not int or not 0 <= number < MOST_TOKENS or not isinstance(text, str):
        raise SourceError(
            f"the vocabulary numbers {text!r:.40} as {number!r:.40}, ids are below {MOST_TOKENS:,}; fetch it again"
        )
    for fresh in range(len(table.tokens), number + 1):
        table.tokens.append(f"[PAD{fresh}]")
        table.kinds.append(UNUSED)
        table.scores.append(0.0)
    table.tokens[number], table.kinds[number] = text, CONTROL if special else USER_DEFINED


def _decoded(table: _Table, config: Mapping[str, Any]) -> Tokenizer:
    places = {token: number for number, token in enumerate(table.tokens)}
    ids = {SPECIAL[name]: places[text] for name, text in table.named.items() if text in places}
    apart = {ids.get("unknown_token_id")} if table.pairs["model"] in ("llama", "t5") else set()
    for number in set(ids.values()) - apart:
        table.kinds[number] = CONTROL
    bert = table.pairs["model"] == "bert"
    tokens = gguf_wordpiece.visible(table.tokens, table.kinds) if bert else table.tokens
    pairs = {"tokens": tokens, "token_type": table.kinds, "scores": table.scores, **ids, **table.pairs}
    for end in ("bos", "eos"):
        if isinstance(said := config.get(f"add_{end}_token"), bool):
            pairs[f"add_{end}_token"] = said
    found = gguf_vocab.decode({GGML + key: value for key, value in pairs.items()})
    kept = {
        name: value for name, value in found.config.items() if name in SPECIAL or name in ("add_bos_token", "add_eos_token")
    }
    return Tokenizer(found.definition, {**kept, **config}, None)


def _sentencepiece(model: sentencepiece.Model, kind: str, config: Mapping[str, Any], name: str) -> _Table:
    if model.suffix or not model.escape:
        raise UnsupportedError(f"{name}: spaces that end words, or are not made visible, are not supported; {_REMEDY}")
    pieces = [
        piece.replace(SPACE, " ") if kind == USER_DEFINED else piece
        for piece, kind in zip(model.pieces, model.kinds, strict=True)
    ]
    named = {f"{end}_token": pieces[n] for end, n in model.ids.items() if 0 <= n < len(pieces)}
    prefix = model.prefix and config.get("add_prefix_space") is not False
    if model.type == sentencepiece.BPE:
        if model.charsmap or model.collapse:
            raise UnsupportedError(
                f"{name}: llama.cpp's BPE neither normalises text nor drops spaces, this model does; {_REMEDY}"
            )
        pairs = {"model": "llama", "add_space_prefix": prefix}
        return _Table(pieces, list(model.kinds), list(model.scores), pairs, named)
    if model.type != sentencepiece.UNIGRAM:
        raise UnsupportedError(f"{name}: SentencePiece models of words or characters are not supported")
    table = _Table(pieces, list(model.kinds), list(model.scores), {"model": "t5"}, named)
    if kind == "XLMRobertaTokenizer":
        _realign(table)
    elif kind in ("LlamaTokenizer", "GemmaTokenizer"):
        table.pairs |= {"add_bos_token": True, "add_eos_token": False}
    elif kind not in ("", "T5Tokenizer"):
        raise UnsupportedError(f"{name}: how a {kind} uses a Unigram model is not known; {_REMEDY}")
    elif kind and "added_tokens_decoder" not in config:
        for number in range(config.get("extra_ids", 100) - 1, -1, -1):
            _place(table, len(table.tokens), f"<extra_id_{number}>", special=True)
    table.pairs |= {
        "add_space_prefix": prefix,
        "remove_extra_whitespaces": model.collapse,
        "precompiled_charsmap": model.charsmap,
    }
    return table


def _realign(table: _Table) -> None:
    """fairseq's order, which XLM-RoBERTa keeps: <s>, <pad>, </s>, <unk>, the pieces from the third on, <mask>."""
    head = ["<s>", "<pad>", "</s>", "<unk>"]
    table.tokens = [*head, *table.tokens[3:], "<mask>"]
    table.kinds = [CONTROL, CONTROL, CONTROL, gguf_tokens.UNKNOWN, *table.kinds[3:], CONTROL]
    table.scores = [0.0] * 4 + table.scores[3:] + [0.0]
    table.named = dict(_ROBERTA)
    table.pairs |= {"add_bos_token": True, "add_eos_token": True, "add_sep_token": True}


def _wordpiece(text: str, kind: str, config: Mapping[str, Any]) -> _Table:
    if kind not in ("", "BertTokenizer", "DistilBertTokenizer"):
        raise UnsupportedError(f"vocab.txt of a {kind} is not supported without tokenizer.json: {_REMEDY}")
    if not config.get("tokenize_chinese_chars", True):
        raise UnsupportedError("tokenizer_config.json: llama.cpp's WordPiece always splits Chinese characters")
    tokens = text.rstrip("\n").split("\n")
    if missing := [token for token in _BERT.values() if token not in tokens and token != "[MASK]"]:
        raise SourceError(f"vocab.txt lacks {', '.join(missing)}; fetch it again")
    pairs = {"model": "bert", "normalizer.lowercase": config.get("do_lower_case", True)}
    if (strip := config.get("strip_accents")) is not None:
        pairs["normalizer.strip_accents"] = strip
    return _Table(
        tokens, [NORMAL] * len(tokens), [0.0] * len(tokens), pairs, {**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"}
    )


def _byte_level(folder: Path, kind: str, config: Mapping[str, Any]) -> _Table:
    if kind not in _PRE or config.get("add_prefix_space"):
        known = ", ".join(_PRE)
        raise UnsupportedError(
            f"vocab.json of {kind or 'a tokenizer without a name in tokenizer_config.json'} does not say how text is split; "
            f"known, without a space before the text: {known}. Otherwise {_REMEDY}"
        )
    lines = documents.read_text(folder / "merges.txt", documents.TABLE).split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    pairs: dict[str, Any] = {"model": "gpt2", "pre": _PRE[kind], "merges": merges}
    if kind in _ENDED:
        pairs |= {"add_bos_token": True, "add_eos_token": True, "add_sep_token": True}
    table = _Table([], [], [], pairs, dict(_ROBERTA if kind in _ENDED else _GPT2))
    for token, number in _numbers(folder).items():
        _place(table, number, token, special=False)
        table.kinds[number] = NORMAL
    return table


def _numbers(folder: Path) -> dict[str, int]:
    found: dict[str, int] | None = documents.read_json(folder / "vocab.json")
    if found is None:
        raise SourceError(f"{folder} has no vocab.json to number the pieces of {_MARIAN}; fetch it")
    return found


def _marian(model: sentencepiece.Model, numbers: Mapping[str, int]) -> _Table:
    """The pieces of the language that is translated, numbered together with the other's; ">>fra<<" and its like are tokens."""
    if model.type != sentencepiece.UNIGRAM or model.suffix or not model.escape:
        raise UnsupportedError(f"{_MARIAN}: only Unigram models whose spaces begin words are supported; {_REMEDY}")
    pairs = {
        "model": "t5",
        "add_space_prefix": model.prefix,
        "remove_extra_whitespaces": model.collapse,
        "precompiled_charsmap": model.charsmap,
    }
    table = _Table([], [], [], pairs, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})
    scores = dict(zip(model.pieces, model.scores, strict=True))
    for token, number in numbers.items():
        _place(table, number, token, special=False)
        language = token.startswith(">>") and token.endswith("<<")
        table.kinds[number] = USER_DEFINED if language else gguf_tokens.UNKNOWN if token == "<unk>" else NORMAL
        table.scores[number] = scores.get(token, _FOREIGN * len(token))
    return table
