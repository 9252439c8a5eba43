"""Folders and files that appear whole or not at all; a killed process's successor can complete a folder."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from longllava_trt.core.errors import InputError

__all__ = ["JOURNAL_FILE", "atomic_directory", "atomic_file"]

logger = logging.getLogger(__name__)

JOURNAL_FILE = "journal.jsonl"
"""File in a staging folder that lists its finished parts. It is not published."""


@contextmanager
def atomic_directory(
    folder: Path, *, overwrite: bool, marker: str, resume_key: str | None = None
) -> Iterator[Path]:
    """Yield a staging folder, and move it to the target's place when the block succeeds.

    After any failure or interrupt, the target is as it was and the staging folder is gone. The next
    call for the same target removes what a killed process left.

    Args:
        folder: The target. Must be absent or empty, unless ``overwrite``.
        overwrite: Replace the target, if it is a folder of the same kind.
        marker: A file that every folder of this kind has, so that no other folder is replaced.
        resume_key: Name of the content, in letters and digits. The staging folder of a killed call
            with the same key is used again, with its files. A folder with a `JOURNAL_FILE` is kept
            even after an interrupt or on a full disk.

    Raises:
        InputError: If the target is taken, cannot be written, or is being made by another process.
    """
    folder = folder.absolute()
    staging = folder.with_name(f".{folder.name}.{resume_key or uuid4().hex[:8]}.staging")
    try:
        _tidy(folder, keep=staging)
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if taken and not overwrite:
            raise InputError(
                f"{folder}: must be absent or empty; choose another folder, or pass --overwrite"
            )
        if taken and not (folder / marker).is_file():
            raise InputError(
                f"{folder}: has no {marker}, so it is none of ours to overwrite; remove it yourself"
            )
        staging.mkdir(parents=True, exist_ok=resume_key is not None)
        with _lock(staging) as is_ours:
            if not is_ours:
                raise InputError(f"{folder}: is being written by another process; wait for it")
            with _removed_on_failure(staging):
                yield staging
                (staging / JOURNAL_FILE).unlink(missing_ok=True)
                retired = staging.with_suffix(".old")
                if taken:
                    folder.rename(retired)
                staging.replace(folder)
            if taken:
                shutil.rmtree(retired)
    except OSError as err:
        raise InputError(f"{folder}: cannot be written ({err}); choose another folder") from err


def atomic_file(path: Path, content: bytes) -> None:
    """Write a file, or put another content in its place, in one step.

    Raises:
        OSError: If it cannot be written; a file that was there is as it was.
    """
    staging = path.with_name(f".{path.name}.{uuid4().hex[:8]}.staging")
    try:
        staging.write_bytes(content)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def _removed_on_failure(staging: Path) -> Iterator[None]:
    """Remove the folder if the block fails, unless a later call can use its files."""
    try:
        yield
    except BaseException as err:
        if isinstance(err, OSError | KeyboardInterrupt) and (staging / JOURNAL_FILE).exists():
            logger.warning(
                "what is finished is kept in %s; the same command goes on from there", staging
            )
        else:
            shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Try to lock a folder, and yield whether it succeeded.

    The system releases the lock when the process ends, even if it is killed.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)


def _tidy(folder: Path, *, keep: Path) -> None:
    """Remove staging folders of killed processes, and undo a move that was not completed."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-z]+\.(staging|old)")
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    left = {path: match[1] for path in beside if (match := name.fullmatch(path.name))}
    for staging in [path for path, kind in left.items() if kind == "staging"]:
        with _lock(staging) as is_left:
            if not is_left:
                return
            if staging != keep:
                logger.warning("removed %s, left by a process that was killed", staging)
                shutil.rmtree(staging)
    for retired in [path for path, kind in left.items() if kind == "old"]:
        if folder.exists():
            shutil.rmtree(retired)
        else:
            retired.rename(folder)
