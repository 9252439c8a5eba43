"""Calls are cut into few pieces of fixed sizes that add up."""

from __future__ import annotations

import pytest

from longllava_trt.runtime.backends.trt.fixed_sizes import call_sizes, cut, token_sizes


@pytest.mark.parametrize(
    ("dim", "largest", "sizes"),
    [
        ("seq_len", 4096, (4096, 1024, 256, 64, 16, 4, 1)),
        ("seq_len", 1000, (1000, 256, 64, 16, 4, 1)),
        ("seq_len", 8192, (8192, 4096, 1024, 256, 64, 16, 4, 1)),
        ("seq_len", 2, (2, 1)),
        ("num_images", 16, (16, 8, 4, 2, 1)),
        ("num_images", 6, (6, 4, 2, 1)),
        ("num_images", 1, (1,)),
        ("batch", 4, ()),
    ],
)
def test_sizes(dim: str, largest: int, sizes: tuple[int, ...]) -> None:
    assert call_sizes(dim, largest) == sizes


def test_pieces_add_up_and_are_few() -> None:
    sizes = token_sizes(4096)
    for length in range(1, 4097):
        pieces = cut(length, sizes)
        assert sum(pieces) == length
        assert set(pieces) <= set(sizes)
        assert pieces == sorted(pieces, reverse=True)
        assert len(pieces) <= 18
    assert cut(4096, sizes) == [4096]
    assert cut(30, sizes) == [16, 4, 4, 4, 1, 1]


def test_what_is_not_cut_stays_whole() -> None:
    assert cut(4097, token_sizes(4096)) == [4097]
    assert cut(7, ()) == [7]
