"""Runs an iterator one item ahead, in a thread: the next images are encoded while the decoder reads a chunk.

Both wait for the GPU without holding the interpreter, each on its own stream, so their work overlaps there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

Item = TypeVar("Item")


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items in the same order; the next is being made while one is used.

    Closing this closes ``items``, once the item under way is done. What ``items`` raises is raised at its place.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="run-ahead")
    try:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=True)
        close = getattr(items, "close", None)
        if close is not None:
            close()
