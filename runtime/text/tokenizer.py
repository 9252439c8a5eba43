"""Text to token ids and back, from a bundle's tokenizer.json.

Uses the `tokenizers` package alone: transformers 5 rebuilds this tokenizer with a space before
every text, which changes the ids after each image. Roles and markers are known to chat formats
only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.runtime.text.quoting import Segment, segments
from longllava_trt.runtime.text.special_tokens import SpecialTokens

__all__ = ["ChatTokenizer", "Place", "TokenStream"]

Place = Literal["start", "image", "token"]
"""Kind of what is before a text: nothing, an image, or a place at which a text was cut (`stable_length`)."""

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NO_FORMAT = ChatFormat(user_role="", assistant_role="", separator="")


class ChatTokenizer:
    """The model's tokenizer. It adds to a text only what the format says, and leaves special tokens out of answers.

    Args:
        bundle: Folder that holds tokenizer.json.
        chat: Format that it will tokenize; None to accept any tokenizer.

    Raises:
        ManifestError: If the file is missing or damaged, or is not this model family's tokenizer.
    """

    def __init__(self, bundle: Path, chat: ChatFormat | None = None) -> None:
        path = bundle / "tokenizer.json"
        if not path.is_file():
            raise ManifestError(
                f"{path}: not found; a bundle carries its tokenizer: export it again"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as err:
            # the package raises the class Exception itself for any fault of a file
            raise ManifestError(
                f"{path}: not a tokenizer ({err}); export the bundle again"
            ) from err
        # some files contain the limits of the last program that used them
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._chat = chat or _NO_FORMAT
        markup = (self._chat.image_placeholder, self._chat.image_open, self._chat.image_close)
        self._specials = SpecialTokens(self._tokenizer, markup)
        self._bos = self._opening_ids() if self._chat.begins_with_bos else []
        if chat is not None:
            self._check_format(path, chat)

    def encode(self, text: str, *, after: Place = "start") -> list[int]:
        """Return the ids of a text, or of a part of a prompt.

        A special token in the text, such as `<|startoftext|>`, becomes its id, unless it is in a
        user's text that is marked as such (`quoting.py`).

        Args:
            text: What a format and users wrote.
            after: What is before it in the prompt.

        Raises:
            InputError: If the text is not valid Unicode, such as a command line in a wrong
                encoding.
        """
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise InputError(f"prompt: not valid Unicode ({err}); send it as UTF-8") from err
        parts, is_continued = self._placed(self._parts(text), after)
        ids = self._specials.encode(parts, is_continued=is_continued)
        return self._bos + ids if after == "start" else ids

    def stable_length(self, text: str, following: str, *, after: Place) -> int:
        """Return the length of the beginning of a text whose ids no later text can change.

        It ends after a special token or before one; what follows is encoded with ``after="token"``.

        Args:
            text: Part of a prompt.
            following: What is known of the text after it.
            after: What is before it.
        """
        parts = self._parts(text + following)
        _, is_continued = self._placed([], after)
        cuts = self._specials.cuts(parts, is_continued=is_continued)
        places = (place for cut in cuts for place in _marked_places(parts, cut))
        return max((place for place in places if place <= len(text)), default=0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens.

        In a run of byte pieces that is not UTF-8, every byte becomes U+FFFD, as in the tokenizers
        package.
        """
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> TokenStream:
        """Return a decoder for ids that arrive one at a time."""
        return TokenStream(self)

    def _prints(self, token_id: int) -> bool:
        """Return whether decoding shows this id."""
        known = self._tokenizer.id_to_token(token_id) is not None
        return known and token_id not in self._specials.silent_ids

    def _is_byte_piece(self, token_id: int) -> bool:
        return _BYTE_PIECE.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None

    def _opening_ids(self) -> list[int]:
        """Return the ids that the tokenizer puts before every text."""
        bare, whole = self._specials.bare("a"), list(self._tokenizer.encode("a").ids)
        starts = range(len(whole) - len(bare) + 1)
        return next((whole[:n] for n in starts if whole[n : n + len(bare)] == bare), [])

    def _parts(self, text: str) -> list[Segment]:
        """Return what each side wrote; where special tokens keep their meaning, nothing is marked."""
        if self._chat.keeps_special_tokens:
            return [Segment(text, False, 0)] if text else []
        return segments(text)

    def _placed(self, parts: list[Segment], after: Place) -> tuple[list[Segment], bool]:
        """Return a text with the prefix that its place needs, and whether it continues another one."""
        if after == "token" or (after == "image" and self._chat.joins_text):
            return parts, True
        prefix = self._chat.piece_prefix
        if not prefix or not parts:
            return parts, False
        specials = self._specials.find(parts, is_continued=False)
        if specials and specials[0].begin == 0:
            return parts, False
        return [Segment(prefix, False, 0), *parts], False

    def _check_format(self, path: Path, chat: ChatFormat) -> None:
        """Raise an error for a tokenizer that would make every prompt wrong without notice."""
        token = chat.role_token
        if token and (len(self.encode(token)) != 1 or self.decode(self.encode(token))):
            raise ManifestError(
                f"{path}: '{token}' must be one special token; take the checkpoint's own file"
            )
        place = chat.image_placeholder
        if chat.joins_text and place and len(self.encode(place, after="token")) != 1:
            raise ManifestError(
                f"{path}: '{place}' must be one token, the place of an image in this model's "
                "prompts; take the checkpoint's own file"
            )
        close = chat.image_close
        pieces = self._tokenizer.encode(close, add_special_tokens=False).tokens
        if close and (not pieces or not pieces[0].startswith(close[0])):
            raise ManifestError(
                f"{path}: '{close}' becomes {pieces}, so the ids after an image are not those the "
                "model was trained with (a space before every text?); take the checkpoint's own "
                "file, not one that transformers saved"
            )


def _marked_places(parts: Sequence[Segment], cut: int) -> Iterator[int]:
    """Yield the places in a prompt with marks that a place without marks has, outside of users' texts."""
    at = 0
    for part in parts:
        if not part.is_user and at <= cut <= at + len(part.text):
            yield part.begin + cut - at
        at += len(part.text)


class TokenStream:
    """Decodes ids one at a time, and returns no text that a later id could change.

    The joined results of `push` and `finish` equal `ChatTokenizer.decode` of all ids. So a run of
    byte pieces is held back until it ends: only then is it known whether its bytes are text.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []
        self._before: list[int] = []

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is certain now; often empty."""
        # an id that is not shown does not end a run of bytes either
        if not self._tokenizer._prints(token_id):
            return ""
        self._held.append(token_id)
        if self._tokenizer._is_byte_piece(token_id):
            return ""
        text = self.pending()
        # byte-level vocabularies have no byte pieces: there, half a character decodes to U+FFFD
        if text.endswith(_REPLACEMENT):
            return ""
        self._before = [token_id]
        self._held.clear()
        return text

    def pending(self) -> str:
        """Return the text that `finish` would return; a later id may change it."""
        if not self._held:
            return ""
        # some decoders drop a space at the beginning of a text, and only there
        shown = self._tokenizer.decode(self._before)
        whole = self._tokenizer.decode([*self._before, *self._held])
        return whole.removeprefix(shown)

    def finish(self) -> str:
        """Return the text that is still held back; then the stream is ready for another answer."""
        text = self.pending()
        self._held, self._before = [], []
        return text
