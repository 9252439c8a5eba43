"""Ids of a prompt's parts, of which some keep a special token's meaning and some do not.

Parts are encoded as one text: a piece of the vocabulary may begin in what the format wrote and end in a question. Only where
a user wrote a special token is the text cut at the others, and each part between them encoded as plain text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.text.quoting import Segment, join_segments

__all__ = ["SpecialToken", "SpecialTokens"]


class SpecialToken(NamedTuple):
    """A special token in a text."""

    token_id: int
    begin: int
    end: int
    """Its place in the text without marks, with the white space that it swallows."""


class SpecialTokens:
    """The special tokens of a tokenizer, and the encoding of texts with them.

    Args:
        tokenizer: The tokenizer; gets one more token, which no text becomes.
        markup: Texts that are special where they are tokens, whatever the tokenizer's file says.
    """

    def __init__(self, tokenizer: Tokenizer, markup: Iterable[str] = ()) -> None:
        added = tokenizer.get_added_tokens_decoder()
        extra = (tokenizer.token_to_id(text) for text in markup if text)
        self.silent_ids = frozenset(i for i, token in added.items() if token.special)
        """Ids that an answer's text leaves out."""
        self.ids = self.silent_ids | {i for i in extra if i in added}
        self._swallows_before = {i for i, token in added.items() if token.lstrip}
        self._swallows_after = {i for i, token in added.items() if token.rstrip}
        # one more token, matched even where special tokens are text; random, so that no text holds it
        self._mark = f"\ufdd3{secrets.token_hex(8)}"
        tokenizer.add_tokens([AddedToken(self._mark, normalized=False)])
        self._tokenizer = tokenizer
        self._place_matters = self._after_mark(self._tokenizer, "a").ids != self.bare("a")

    def bare(self, text: str) -> list[int]:
        """Return the ids of a text that stands alone, with nothing added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, parts: Sequence[Segment], *, is_continued: bool) -> list[int]:
        """Return the ids of a text; special tokens that users wrote are text.

        Args:
            parts: The text.
            is_continued: It follows a special token, and does not begin a text.
        """
        text = join_segments(parts)
        found = self._run(self._tokenizer, text, is_continued=is_continued)
        if not any(part.is_user for part in parts) or self.ids.isdisjoint(found.ids):
            return found.ids
        every = self._in_encoding(found)
        ours = _outside_users(every, parts)
        if len(ours) == len(every):
            return found.ids
        ids: list[int] = []
        at = 0
        for special in ours:
            ids += self._plain(text[at : special.begin], is_continued=is_continued or at > 0)
            ids.append(special.token_id)
            at = special.end
        return ids + self._plain(text[at:], is_continued=is_continued or at > 0)

    def find(self, parts: Sequence[Segment], *, is_continued: bool) -> list[SpecialToken]:
        """Return the special tokens in a text that no user wrote."""
        found = self._run(self._tokenizer, join_segments(parts), is_continued=is_continued)
        return _outside_users(self._in_encoding(found), parts)

    def cuts(self, parts: Sequence[Segment], *, is_continued: bool) -> list[int]:
        """Return the places in a text without marks at which it may be encoded in two parts."""
        specials = self.find(parts, is_continued=is_continued)
        before = [s.begin for s in specials if s.token_id not in self._swallows_before]
        return before + [s.end for s in specials if s.token_id not in self._swallows_after]

    @cached_property
    def _as_text(self) -> Tokenizer:
        """The tokenizer without any special token; made when a user writes the first one."""
        raw: dict[str, Any] = json.loads(self._tokenizer.to_str())
        for token in raw["added_tokens"]:
            token["special"] = token["special"] or token["id"] in self.ids
        tokenizer = Tokenizer.from_str(json.dumps(raw))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _plain(self, text: str, *, is_continued: bool) -> list[int]:
        """Return the ids of a text in which nothing is a special token."""
        ids = self._run(self._as_text, text, is_continued=is_continued).ids
        for token_id in self.ids.intersection(ids):
            token = self._tokenizer.id_to_token(token_id)
            raise InputError(
                f"prompt: this model's vocabulary cannot write '{token}' as text; remove it"
            )
        return ids

    def _run(self, tokenizer: Tokenizer, text: str, *, is_continued: bool) -> _Encoded:
        if is_continued and self._place_matters:
            return self._after_mark(tokenizer, text)
        return _Encoded.of(tokenizer.encode(text, add_special_tokens=False))

    def _after_mark(self, tokenizer: Tokenizer, text: str) -> _Encoded:
        """Encode a text as the continuation of another one."""
        whole = tokenizer.encode(self._mark + text, add_special_tokens=False)
        return _Encoded.of(whole).without_first(len(self._mark))

    def _in_encoding(self, found: _Encoded) -> list[SpecialToken]:
        return [
            SpecialToken(token_id, begin, end)
            for token_id, (begin, end) in zip(found.ids, found.offsets, strict=True)
            if token_id in self.ids
        ]


class _Encoded(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]

    @classmethod
    def of(cls, encoding: Encoding) -> _Encoded:
        return cls(list(encoding.ids), list(encoding.offsets))

    def without_first(self, length: int) -> _Encoded:
        """Return it without its first token, which stands for ``length`` characters."""
        moved = [(begin - length, end - length) for begin, end in self.offsets[1:]]
        return _Encoded(self.ids[1:], moved)


def _outside_users(specials: list[SpecialToken], parts: Sequence[Segment]) -> list[SpecialToken]:
    """Return the special tokens of which no user wrote a character."""
    users, at = [], 0
    for part in parts:
        if part.is_user:
            users.append((at, at + len(part.text)))
        at += len(part.text)
    return [s for s in specials if not any(s.begin < end and begin < s.end for begin, end in users)]
