"""A SentencePiece model file (sentencepiece_model.proto), read without SentencePiece: pieces and the rules for text."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quantkit.errors import SourceError

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class Model:
    """`kinds` are ModelProto.SentencePiece.Type, whose numbers are gguf.TokenType's. Ids that the model lacks are -1."""

    type: int
    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    ids: dict[str, int]  # unk, bos, eos, pad
    charsmap: bytes
    prefix: bool  # a space is put before the text
    collapse: bool  # spaces at its ends go, several become one
    suffix: bool  # spaces end words instead of beginning them
    escape: bool  # spaces are made visible


def parse(data: bytes, name: str) -> Model:
    """The model in a file's bytes. Raises SourceError naming the file for anything else."""
    try:
        found = _model(data)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError, TypeError) as error:
        raise SourceError(
            f"{name} is not a SentencePiece model ({type(error).__name__}: {error}); save the tokenizer with transformers, "
            "which writes tokenizer.json"
        ) from error
    if not found.pieces:
        raise SourceError(f"{name} is a SentencePiece model without pieces; fetch it again")
    return found


def _model(data: bytes) -> Model:
    pieces, scores, kinds = [], [], []
    trainer: dict[int, Any] = {}
    rules: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append(piece[1].decode("utf-8"))
            scores.append(piece.get(2, 0.0))
            kinds.append(piece.get(3, 1))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            rules = dict(_fields(value))
    ids = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    return Model(
        type=trainer.get(3, UNIGRAM),
        pieces=pieces,
        scores=scores,
        kinds=kinds,
        ids={name: _signed(trainer.get(number, default)) for name, (number, default) in ids.items()},
        charsmap=rules.get(2, b""),
        prefix=bool(rules.get(3, 1)),
        collapse=bool(rules.get(4, 1)),
        suffix=bool(trainer.get(24, 0)),
        escape=bool(rules.get(5, 1)),
    )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message: an int, a float, or bytes. Raises ValueError, IndexError, struct.error."""
    place, size = 0, len(data)
    while place < size:
        tag, place = _varint(data, place)
        value: Any
        match tag & 7:
            case 0:
                value, place = _varint(data, place)
            case 1:
                (value,), place = struct.unpack_from("<d", data, place), place + 8
            case 2:
                length, place = _varint(data, place)
                value, place = data[place : place + length], place + length
                if place > size:
                    raise ValueError("it breaks off")
            case 5:
                (value,), place = struct.unpack_from("<f", data, place), place + 4
            case kind:
                raise ValueError(f"wire type {kind}")
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[place]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift, place = shift + 7, place + 1
    return value | byte << shift, place + 1
