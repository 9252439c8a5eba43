"""SHA-256 of files, in the background and in parallel; hashing releases the interpreter lock.

Ranges of a sparse file that have no data on disk are hashed as zeros, without reading them.
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

# large: between two blocks a thread may wait a whole switch interval for the interpreter lock
_BLOCK_BYTES = 8 * 2**20
_MAX_THREADS = 8
# never written to, so that the kernel shows one page of zeros for all of it
_ZEROS = memoryview(bytes(_BLOCK_BYTES))

Identity = tuple[int, int, int, int]


class FileHasher:
    """Hashes each file once, even under several names, and again if it has changed.

    A context manager; leaving it cancels hashes that are not done.
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
        """Begin to hash a file, if that has not begun."""
        identity = _identity(path)
        if identity not in self._futures:
            self._futures[identity] = self._pool.submit(_digest, path, self._stop)

    def know(self, path: Path, digest: str) -> None:
        """Store a hash that was computed while the file was written."""
        known: Future[str] = Future()
        known.set_result(digest)
        self._futures[_identity(path)] = known

    def digest(self, path: Path) -> str:
        """Wait for a file's SHA-256 and return it in hexadecimal."""
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
    """Yield a file's bytes in blocks; a block is valid until the next one."""
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
    """Yield begin and end of each part of a file, and whether it has no data on disk."""
    found = os.fstat(file.fileno())
    size = found.st_size
    # only if blocks are missing: some file systems answer slowly, or wrongly about new data
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
    """Return the position of the next data; the file's size if there is none."""
    try:
        return os.lseek(file.fileno(), position, os.SEEK_DATA)
    except OSError as err:
        if err.errno != errno.ENXIO:
            raise
        return size
