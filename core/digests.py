"""SHA-256 of files, in the background and side by side; hashing releases the interpreter lock.

The holes of a sparse file are hashed as the zeros they stand for, without reading them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from typing import Self

__all__ = ["FileHasher"]

# large: a thread that wants the interpreter back between two blocks waits for a whole switch interval
_BLOCK_BYTES = 8 * 2**20
_MAX_THREADS = 8
# never written to, so that the kernel shows one page of zeros for all of it
_ZEROS = memoryview(bytes(_BLOCK_BYTES))

Identity = tuple[int, int, int, int]


class FileHasher:
    """Hashes each file once, whatever names it has, and again if it has changed since.

    A context manager; leaving it abandons what is not done.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
        self._stop = threading.Event()
        self._futures: dict[Identity, Future[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def start(self, path: Path) -> None:
        """Begin to hash a file, unless that has begun."""
        identity = _identity(path)
        if identity not in self._futures:
            self._futures[identity] = self._pool.submit(_digest, path, self._stop)

    def know(self, path: Path, digest: str) -> None:
        """Take a hash that was computed as the file was written."""
        known: Future[str] = Future()
        known.set_result(digest)
        self._futures[_identity(path)] = known

    def digest(self, path: Path) -> str:
        """Return a file's SHA-256 in hexadecimal; waits for it."""
        self.start(path)
        return self._futures[_identity(path)].result()


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: Path, stop: threading.Event) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for block in _blocks(file):
            if stop.is_set():
                break
            sha256.update(block)
    return sha256.hexdigest()


def _blocks(file: RawIOBase) -> Iterator[memoryview]:
    """Yield what a file holds; a block is valid until the next one."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    for begin, end, is_hole in _extents(file):
        file.seek(begin)
        left = end - begin
        while left:
            size = min(left, _BLOCK_BYTES)
            count = size if is_hole else file.readinto(buffer[:size])
            if not count:
                return  # cut off meanwhile
            yield (_ZEROS if is_hole else buffer)[:count]
            left -= count


def _extents(file: RawIOBase) -> Iterator[tuple[int, int, bool]]:
    """Yield begin and end of each run of a file, and whether it is a hole."""
    found = os.fstat(file.fileno())
    size = found.st_size
    # only where blocks are missing: some file systems are slow to tell, or have told wrongly about fresh data
    if not hasattr(os, "SEEK_DATA") or found.st_blocks * 512 >= size:
        yield 0, size, False
        return
    position = 0
    while position < size:
        data = _seek_data(file, position, size)
        if data > position:
            yield position, data, True
        if data < size:
            position = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            yield data, position, False
        else:
            position = size


def _seek_data(file: RawIOBase, position: int, size: int) -> int:
    """Return where the next data begins; the file's size if only a hole follows."""
    try:
        return os.lseek(file.fileno(), position, os.SEEK_DATA)
    except OSError as err:
        if err.errno != errno.ENXIO:
            raise
        return size
