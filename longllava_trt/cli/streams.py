"""Output that cannot be written: a character the terminal lacks, a closed pipe, a full disk."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["CLOSED_PIPE", "Output", "guarded_output"]

CLOSED_PIPE = 141
"""Exit status that a shell reports if the signal of a closed pipe has ended a program."""
_NOT_WRITTEN = 2
_SPELLINGS = {"✓": "+", "✗": "x", "→": "->", "…": "...", "×": "x", "–": "-"}  # noqa: RUF001
_HANDLER = "longllava-spell"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(slots=True)
class Output:
    """How a command has ended."""

    status: int = 0


@contextmanager
def guarded_output() -> Iterator[Output]:
    """Run a command whose output may go anywhere; afterwards ``status`` is right even where it could not be written.

    A character that a stream cannot encode is spelled, or becomes a question mark.
    """
    codecs.register_error(_HANDLER, _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
    output = Output()
    try:
        try:
            yield output
        finally:
            # so that what fails fails here; None is what Python makes of a stream that is closed from the start
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _abandon()
        output.status = CLOSED_PIPE
    except OSError as err:
        # an error of opening a file names it, one of writing to a stream names nothing
        if err.errno not in _FULL or err.filename is not None:
            raise
        _abandon()
        with suppress(OSError):
            print(
                f"error: output cannot be written ({err.strerror}); free some space",
                file=sys.stderr,
            )
        output.status = _NOT_WRITTEN


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELLINGS.get(letter, "?") for letter in missing), error.end


def _abandon() -> None:
    """Let what is still buffered vanish: Python would complain once more when it closes the streams."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
