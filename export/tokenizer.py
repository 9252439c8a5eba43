"""A checkpoint's tokenizer.json; made from tokenizer.model where there is none, or where the original reads that alone.

The ids are those of the slow SentencePiece tokenizer, which the original uses, or those of transformers' own conversion: they
differ where a text begins with a space. Both have byte fallback, a space mark in front of every text between special tokens
(`legacy`) or of the first alone, and the tokens that the checkpoint's other files add.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import CheckpointError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.export.sentencepiece_model import (
    Piece,
    PieceKind,
    SentencePieceModel,
    read_sentencepiece,
)

__all__ = ["PlacedTokenizer", "place_tokenizer"]

_MODEL, _FAST = "tokenizer.model", "tokenizer.json"
_SPACE = "\u2581"
_DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""Of Llama's tokenizer class."""


@dataclass(frozen=True, slots=True)
class PlacedTokenizer:
    """A tokenizer.json that was written."""

    piece_prefix: str = ""
    """Text that the original puts before every text, and the file does not."""


def place_tokenizer(checkpoint: Path, folder: Path, *, prefers_model: bool) -> PlacedTokenizer:
    """Write a checkpoint's tokenizer.json to a folder.

    Args:
        checkpoint: Folder with tokenizer.json or tokenizer.model.
        folder: Where to.
        prefers_model: Of both, tokenizer.model decides, and the ids are the slow tokenizer's, as in the original.

    Raises:
        CheckpointError: If there is neither, or the model cannot be used.
    """
    model, fast = checkpoint / _MODEL, checkpoint / _FAST
    if fast.is_file() and not (prefers_model and model.is_file()):
        if prefers_model:
            _check_beginning(fast, _TokenizerFiles.read(checkpoint))
        shutil.copyfile(fast, folder / _FAST)
        return PlacedTokenizer()
    if not model.is_file():
        raise CheckpointError(
            f"{fast}: not found, and no {_MODEL}; one of them must be in the folder of config.json"
        )
    files = _TokenizerFiles.read(checkpoint)
    piece_model = read_sentencepiece(model)
    document = _document(piece_model, files, where=model)
    if not prefers_model:
        document |= _spaces_of_transformers(piece_model, files)
    text = json.dumps(document, ensure_ascii=False, indent=1)
    (folder / _FAST).write_text(text + "\n", encoding="utf-8")
    # a tokenizer that is not legacy marks the beginning alone, even before a space; no normalizer knows the beginning
    marked = prefers_model and piece_model.adds_prefix_space and files.marks_beginning
    return PlacedTokenizer(" " if marked else "")


def _check_beginning(fast: Path, files: _TokenizerFiles) -> None:
    """Raise an error if the original would put a token before every text, and the file does not."""
    added = read_json_object(fast, whose="a tokenizer's file").get("post_processor")
    if files.config.get("add_bos_token") is True and json.dumps(files.bos) not in json.dumps(added):
        raise CheckpointError(
            f"{fast}: must put '{files.bos}' before every text, as 'add_bos_token' in tokenizer_config.json says; add "
            "tokenizer.model, or take the checkpoint's own file"
        )


@dataclass(frozen=True, slots=True)
class _TokenizerFiles:
    """Content of the files beside tokenizer.model."""

    config: Mapping[str, Any]
    names: Mapping[str, str]
    """Special tokens by what they are for, such as `bos_token`."""
    more: tuple[str, ...]
    """Special tokens without such a name."""
    ids: Mapping[str, int]
    """Ids of added_tokens.json."""

    @classmethod
    def read(cls, checkpoint: Path) -> _TokenizerFiles:
        config = _optional(checkpoint / "tokenizer_config.json")
        special = {**config, **_optional(checkpoint / "special_tokens_map.json")}
        named = {key: _content(value) for key, value in special.items() if key.endswith("_token")}
        more = special.get("additional_special_tokens") or []
        return cls(
            config,
            _DEFAULTS | {key: text for key, text in named.items() if text},
            tuple(text for token in more if (text := _content(token))),
            _optional(checkpoint / "added_tokens.json"),
        )

    @property
    def is_legacy(self) -> bool:
        """Whether every text between special tokens gets a space mark; so it is if nothing is said."""
        return self.config.get("legacy") is not False

    @property
    def marks_beginning(self) -> bool:
        """Whether the beginning alone gets a space mark."""
        return not self.is_legacy and self.config.get("add_prefix_space") is not False

    @property
    def bos(self) -> str | None:
        """Token in front of every text."""
        return self.names["bos_token"] if self.config.get("add_bos_token", True) else None


def _document(model: SentencePieceModel, files: _TokenizerFiles, *, where: Path) -> dict[str, Any]:
    """Return a tokenizer.json."""
    vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
    added = _added_tokens(model, files, vocab, where)
    ids = vocab | {token["content"]: token["id"] for token in added}
    unknown = next((p.text for p in model.pieces if p.kind is PieceKind.UNKNOWN), None)
    spaces: list[dict[str, Any]] = [_replace(" ", _SPACE)]
    has_prefix = model.adds_prefix_space and files.is_legacy
    if has_prefix:
        spaces.insert(0, {"type": "Prepend", "prepend": _SPACE})
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "post_processor": _post_processor(files, ids, where),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace(_SPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([strip] if model.adds_prefix_space else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.has_byte_fallback,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in _merges(model.pieces, vocab)],
        },
    }


def _spaces_of_transformers(model: SentencePieceModel, files: _TokenizerFiles) -> dict[str, Any]:
    """Return how transformers' LlamaTokenizer marks spaces: no second mark where a text begins with one."""
    scheme = "always" if files.config.get("legacy") is True else "first"
    if not model.adds_prefix_space or files.config.get("add_prefix_space") is False:
        scheme = "never"
    marks = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": marks}


def _merges(pieces: Iterable[Piece], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs that become a piece, best score first, as SentencePiece joins them."""
    normal = {piece.text: piece.score for piece in pieces if piece.kind is PieceKind.NORMAL}
    alone = {piece.text for piece in pieces if piece.kind is PieceKind.USER_DEFINED}
    found = []
    for text, score in normal.items():
        # a user-defined character is never joined to others
        if alone.isdisjoint(text):
            found += [
                (score, left, right)
                for left, right in _halves(text)
                if left in normal and right in normal
            ]
    found.sort(key=lambda pair: (-pair[0], vocab[pair[1] + pair[2]], vocab[pair[1]]))
    return [(left, right) for _, left, right in found]


def _halves(text: str) -> Iterator[tuple[str, str]]:
    return ((text[:cut], text[cut:]) for cut in range(1, len(text)))


def _added_tokens(
    model: SentencePieceModel, files: _TokenizerFiles, vocab: Mapping[str, int], where: Path
) -> list[dict[str, Any]]:
    """Return the tokens that are matched as a whole: those that the files name, at their ids."""
    defined = [p.text for p in model.pieces if p.kind is PieceKind.USER_DEFINED and len(p.text) > 1]
    own = [
        text for name, text in files.names.items() if _DEFAULTS.get(name) != text or text in vocab
    ]
    special = [*dict.fromkeys([*own, *files.more])]
    tokens = {
        int(index): {"id": int(index), **_flags(special=False), **token}
        for index, token in files.config.get("added_tokens_decoder", {}).items()
    }
    known = {token["content"]: index for index, token in tokens.items()}
    following = max([len(vocab) - 1, *known.values(), *files.ids.values()]) + 1
    for text in [*files.ids, *special, *defined]:
        if text in known:
            continue
        if text in defined and model.adds_prefix_space and files.is_legacy:
            # SentencePiece marks no space after it, and the file could only mark all or none
            raise CheckpointError(
                f"{where}: has the user-defined piece '{text}', which cannot be converted with a space in front of every text; give "
                "the checkpoint a tokenizer.json"
            )
        index = files.ids.get(text, vocab.get(text))
        if index is None:
            index, following = following, following + 1
        known[text] = index
        tokens[index] = {"id": index, "content": text, **_flags(special=text in special)}
    return [tokens[index] for index in sorted(tokens)]


def _flags(*, special: bool) -> dict[str, bool]:
    return {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _post_processor(
    files: _TokenizerFiles, ids: Mapping[str, int], where: Path
) -> dict[str, Any] | None:
    """Return what puts the beginning of a sentence before every text."""
    bos = files.bos
    if bos is None:
        return None
    if bos not in ids:
        raise CheckpointError(
            f"{where}: must hold '{bos}', which begins every text; name the right 'bos_token' in tokenizer_config.json, or "
            "set 'add_bos_token' to false there"
        )
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _content(token: object) -> str | None:
    """Return a special token's text, written as a text or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, whose="a tokenizer's file") if path.is_file() else {}
