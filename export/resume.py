"""Resuming an export that was killed: a key for its inputs, and a journal of finished files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longllava_trt.core.digests import FileHasher
from longllava_trt.core.publish import JOURNAL_FILE

__all__ = ["Journal", "resume_key"]

logger = logging.getLogger(__name__)

_KEY_DIGITS = 16


def resume_key(files: Iterable[Path], **inputs: Any) -> str:
    """Return a name for everything that a result depends on.

    Args:
        files: Large inputs, known by path, length and time of change.
        inputs: All other inputs, in JSON types.
    """
    found = {str(path.resolve()): path.stat() for path in files}
    large = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in sorted(found.items())}
    text = json.dumps([large, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


class Journal:
    """The finished files of a staging folder, with data to remember for each.

    Args:
        staging: Folder; may hold finished files of an earlier process.
        hasher: Hashes these files; files that match need not be hashed again.
    """

    def __init__(self, staging: Path, hasher: FileHasher) -> None:
        self._staging = staging
        self._hasher = hasher
        self._entries = {entry["file"]: entry for entry in _read(staging / JOURNAL_FILE)}
        for name in self._entries:
            if (staging / name).is_file():
                hasher.start(staging / name)

    def recall(self, file: str) -> Any | None:
        """Return the data of a finished file; None if it is missing or has changed."""
        entry, path = self._entries.get(file), self._staging / file
        if entry is None or not path.is_file():
            return None
        if self._hasher.digest(path) != entry["sha256"]:
            logger.warning("%s: differs from what was finished, so it is made again", file)
            return None
        logger.info("%s: finished before", file)
        return entry["remembered"]

    def finish(self, file: str, *, sha256: str, remembered: Any) -> None:
        """Record that a file is complete; the record is on disk when this returns."""
        entry = {"file": file, "sha256": sha256, "remembered": remembered}
        with (self._staging / JOURNAL_FILE).open("a", encoding="utf-8") as journal:
            # a line that a kill has cut off must not join this one
            journal.write("\n" + json.dumps(entry) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._hasher.know(self._staging / file, sha256)


def _read(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the entries, without a line that was cut off."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield entry
