"""A user's text inside of a prompt, marked as such: special tokens in it stay text.

A prompt is one `str` from the format, the questions and the answers. Marks around what users wrote travel with it, through
pending text and saved sessions, to the tokenizer. They are noncharacters, which Unicode reserves for such use; the same
characters in a user's text are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Segment", "join_segments", "quote", "segments", "unquote"]

_OPEN, _CLOSE, _ESCAPE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARK = re.compile(f"[{_OPEN}{_CLOSE}{_ESCAPE}]")
_QUOTED = re.compile(f"{_OPEN}((?:{_ESCAPE}.|[^{_CLOSE}])*){_CLOSE}", re.DOTALL)


class Segment(NamedTuple):
    """A part of a prompt that one side wrote."""

    text: str
    """Without marks."""
    is_user: bool
    begin: int
    """Index of its first character in the prompt with marks."""


def quote(text: str) -> str:
    """Return a user's text with marks around it."""
    if not text:
        return ""
    return _OPEN + _MARK.sub(lambda mark: _ESCAPE + mark[0], text) + _CLOSE


def segments(prompt: str) -> list[Segment]:
    """Return the parts of a prompt, in order; none is empty."""
    found, at = [], 0
    for match in _QUOTED.finditer(prompt):
        if match.start() > at:
            found.append(Segment(prompt[at : match.start()], False, at))
        plain = re.sub(f"{_ESCAPE}(.)", r"\1", match[1], flags=re.DOTALL)
        found.append(Segment(plain, True, match.start()))
        at = match.end()
    if at < len(prompt):
        found.append(Segment(prompt[at:], False, at))
    return found


def join_segments(parts: Iterable[Segment]) -> str:
    """Return the text of all parts."""
    return "".join(part.text for part in parts)


def unquote(prompt: str) -> str:
    """Return a prompt without marks."""
    return join_segments(segments(prompt))
