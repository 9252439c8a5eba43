"""Bytes of a file: base of a stored tensor, a bundle's weight and a part of an engine's weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ByteRange"]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Consecutive bytes of one file."""

    file: str | Path
    offset: int
    """First byte, counted from the start of the file."""
    nbytes: int

    @property
    def end(self) -> int:
        """First byte after the range."""
        return self.offset + self.nbytes

    def within(self, skip: int, nbytes: int) -> Self:
        """Return a copy with only ``nbytes`` of its bytes, after the first ``skip``."""
        return replace(self, offset=self.offset + skip, nbytes=nbytes)
