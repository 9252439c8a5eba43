"""Fixed sizes that calls are made in, where TensorRT compiles kernels for every new one.

TensorRT-RTX compiles kernels when a call has a shape that it has not met before, while the user waits. So what is left of
a prompt after its full chunks is fed in pieces of a few sizes, longest first. That is exact: the decoder carries its state
from piece to piece, and images do not know of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

__all__ = ["call_sizes", "cut", "token_sizes"]

_TOKENS = (4096, 1024, 256, 64, 16, 4, 1)


def token_sizes(largest: int) -> tuple[int, ...]:
    """Return the numbers of tokens of a call, most first; the first is `largest`."""
    return (largest, *(size for size in _TOKENS if size < largest))


def call_sizes(dim: str, largest: int) -> tuple[int, ...]:
    """Return the sizes of one dim that calls have, longest first: of `seq_len` or `num_images`.

    Images come in powers of two below `largest`. Empty for another dim.
    """
    if dim == "seq_len":
        return token_sizes(largest)
    if dim != "num_images":
        return ()
    powers = takewhile(lambda size: size < largest, (2**n for n in range(largest)))
    return (largest, *reversed([*powers]))


def cut(length: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes of the pieces that a length is fed in: as few as the sizes allow.

    Args:
        length: Not more than the first of `sizes`.
        sizes: Longest first, the last is 1; empty if any length is as good as another.
    """
    if not sizes or length > sizes[0]:
        return [length]
    pieces = []
    for size in sizes:
        count, length = divmod(length, size)
        pieces += [size] * count
    return pieces
