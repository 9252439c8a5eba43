"""Chunks hold the same embeddings in the same order, whatever the pieces were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.ingest import in_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pieces(lengths: list[int]) -> list[NDArray[np.float32]]:
    rows = np.arange(2 * sum(lengths), dtype=np.float32).reshape(-1, 2)
    return np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []


@given(lengths=st.lists(st.integers(0, 40), max_size=8), size=st.integers(1, 17))
def test_chunks_concatenate_to_the_pieces(lengths: list[int], size: int) -> None:
    chunks = list(in_chunks(pieces(lengths), size))
    assert all(chunk.shape[:2] == (1, size) for chunk in chunks[:-1])
    assert all(0 < chunk.shape[1] <= size for chunk in chunks)
    joined = np.concatenate([c[0] for c in chunks]) if chunks else np.empty((0, 2), np.float32)
    want = np.concatenate(pieces(lengths)) if lengths else joined
    np.testing.assert_array_equal(joined, want)


def test_pieces_are_taken_only_when_a_chunk_needs_them() -> None:
    taken = []

    def source() -> Iterator[NDArray[np.float32]]:
        for i, piece in enumerate(pieces([4] * 6)):
            taken.append(i)
            yield piece

    chunks = in_chunks(source(), 5)
    next(chunks)
    assert taken == [0, 1]
