"""Bytes of a file: what a stored tensor, a bundle's weight and a part of an engine's weight have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ByteRange"]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of one file, in a row."""

    file: str | Path
    offset: int
    """First byte, counted from the start of the file."""
    nbytes: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + self.nbytes

    def within(self, skip: int, nbytes: int) -> Self:
        """Return the same thing with ``nbytes`` of its bytes only, leaving out the first ``skip``."""
        return replace(self, offset=self.offset + skip, nbytes=nbytes)
