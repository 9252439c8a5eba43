"""Runs an iterator one item ahead, in a thread: images are encoded while the decoder runs.

Both wait for the GPU without Python's interpreter lock, each on its own stream, so their work
overlaps on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

Item = TypeVar("Item")


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items in the same order; while one is used, the next is made.

    Closing this closes ``items`` when the item in progress is done. An exception of ``items`` is
    raised at its place in the order.
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
