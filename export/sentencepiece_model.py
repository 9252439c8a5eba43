"""A SentencePiece model file, read without the sentencepiece package.

The file is one protobuf message; the few fields that a tokenizer is made of are read from the wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

from longllava_trt.core.errors import CheckpointError

__all__ = ["Piece", "PieceKind", "SentencePieceModel", "read_sentencepiece"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE = 2

_Value: TypeAlias = "int | bytes"


class PieceKind(IntEnum):
    """Kind of a piece, by its number in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the vocabulary."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """A BPE model that leaves texts as they are, but for a space in front."""

    pieces: tuple[Piece, ...]
    """By id."""
    has_byte_fallback: bool
    """A character without a piece becomes its bytes."""
    adds_prefix_space: bool
    """A text begins with a space mark."""


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model.

    Raises:
        CheckpointError: If the file is damaged, or a model of another kind.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == _PIECE)
        trainer = _message(fields, _TRAINER)
        normalizer = _message(fields, _NORMALIZER)
    except (OSError, ValueError, IndexError, struct.error, TypeError) as err:
        raise CheckpointError(f"{path}: not a SentencePiece model ({err})") from err
    # numbers and defaults of the published message
    problems = [
        "it has no pieces" if not pieces else None,
        "its algorithm is not BPE" if trainer.get(3, 1) != _BPE else None,
        "it normalises texts" if normalizer.get(2) else None,
        "it removes spaces" if normalizer.get(4, 1) else None,
        "it does not mark spaces" if not normalizer.get(5, 1) else None,
        "it marks spaces at the end of words" if trainer.get(24, 0) else None,
        "it has unused pieces" if any(p.kind is PieceKind.UNUSED for p in pieces) else None,
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(
            f"{path}: must be a BPE model that keeps texts as they are, but {', '.join(found)}; give the checkpoint a "
            "tokenizer.json"
        )
    return SentencePieceModel(
        pieces=pieces,
        has_byte_fallback=bool(trainer.get(35, 0)),
        adds_prefix_space=bool(normalizer.get(3, 1)),
    )


def _piece(value: _Value) -> Piece:
    fields = dict(_fields(_bytes(value)))
    score = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))[0]
    return Piece(_bytes(fields[1]).decode(), score, PieceKind(int(fields.get(3, 1))))


def _message(fields: list[tuple[int, _Value]], number: int) -> dict[int, _Value]:
    """Return the fields of the last message under a number."""
    found = [value for key, value in fields if key == number]
    return dict(_fields(_bytes(found[-1]))) if found else {}


def _bytes(value: _Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a field has another type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Yield the fields of a message: its number, and an integer or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a field of type {wire}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer of seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
