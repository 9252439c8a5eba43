"""Text to token ids and back, from a bundle's tokenizer.json.

Uses the `tokenizers` package alone: transformers 5 rebuilds this tokenizer with a space before
every text, which changes the ids after each image. Roles and markers are known to chat formats
only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.models.chat import ChatFormat

__all__ = ["ChatTokenizer", "TokenStream"]

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ChatTokenizer:
    """The model's tokenizer. It adds nothing to a text, and leaves special tokens out of answers.

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
        self._special_ids = frozenset(
            i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )
        if chat is not None:
            self._check_format(path, chat)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with no special token added.

        A special token in the text, such as `<|startoftext|>`, becomes its id.

        Raises:
            InputError: If the text is not valid Unicode, such as a command line in a wrong
                encoding.
        """
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise InputError(f"prompt: not valid Unicode ({err}); send it as UTF-8") from err
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

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
        return known and token_id not in self._special_ids

    def _is_byte_piece(self, token_id: int) -> bool:
        return _BYTE_PIECE.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None

    def _check_format(self, path: Path, chat: ChatFormat) -> None:
        """Raise an error for a tokenizer that would make every prompt wrong without notice."""
        token = chat.role_token
        if token and (len(self.encode(token)) != 1 or self.decode(self.encode(token))):
            raise ManifestError(
                f"{path}: '{token}' must be one special token; take the checkpoint's own file"
            )
        close = chat.image_close
        pieces = self._tokenizer.encode(close, add_special_tokens=False).tokens
        if close and (not pieces or not pieces[0].startswith(close[0])):
            raise ManifestError(
                f"{path}: '{close}' becomes {pieces}, so the ids after an image are not those the "
                "model was trained with (a space before every text?); take the checkpoint's own "
                "file, not one that transformers saved"
            )


class TokenStream:
    """Decodes ids one at a time, and returns no text that a later id could change.

    The joined results of `push` and `finish` equal `ChatTokenizer.decode` of all ids. So a run of
    byte pieces is held back until it ends: only then is it known whether its bytes are text.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is certain now; often empty."""
        # an id that is not shown does not end a run of bytes either
        if not self._tokenizer._prints(token_id):
            return ""
        self._held.append(token_id)
        if self._tokenizer._is_byte_piece(token_id):
            return ""
        text = self._tokenizer.decode(self._held)
        # byte-level vocabularies have no byte pieces: there, half a character decodes to U+FFFD
        if text.endswith(_REPLACEMENT):
            return ""
        self._held.clear()
        return text

    def pending(self) -> str:
        """Return the text that `finish` would return; a later id may change it."""
        return self._tokenizer.decode(self._held) if self._held else ""

    def finish(self) -> str:
        """Return the text that is still held back; then the stream is ready for another answer."""
        text = self.pending()
        self._held.clear()
        return text
