"""CachedAttention: functions that the kernels of a chunk and of a decode step share.

Softmax is online: ``m`` is the largest score so far and ``total`` the sum of powers, of two, so
that ``scale`` holds log2(e). Both are float32, and so are the products' sums; powers are cast to T.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend", "load_block", "load_rotated"]


@triton.jit  # type: ignore[untyped-decorator]
def load_rotated(
    rows: tl.tensor,
    is_row: tl.tensor,
    positions: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    rotary: tl.constexpr,
) -> tl.tensor:
    """Load vectors, and rotate them by their positions' angles. [rows, block_dim], T.

    Args:
        rows: Where each vector begins. Pointers [rows].
        is_row: Which are real; the others are zeros. [rows].
        positions: Of each vector. [rows], int32.
        cos: [positions, head_dim / 2], float32; not read without ``rotary``.
        sin: Likewise.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two; the rest is zeros.
        rotary: Whether element i turns with element i + head_dim / 2.
    """
    d = tl.arange(0, block_dim)
    is_real = is_row[:, None] & (d < head_dim)[None, :]
    x = tl.load(rows[:, None] + d[None, :], mask=is_real, other=0.0)
    if rotary:
        half: tl.constexpr = head_dim // 2
        is_first = d < half
        # remainders, not choices: Triton sees neighbours in them, and loads 16 bytes at once
        partner = (d + half) % head_dim
        angles = positions[:, None] * half + (d % half)[None, :]
        c = tl.load(cos + angles, mask=is_real, other=0.0)
        s = tl.load(sin + angles, mask=is_real, other=0.0)
        other = tl.load(rows[:, None] + partner[None, :], mask=is_real, other=0.0).to(tl.float32)
        other = tl.where(is_first[None, :], -other, other)
        x = (x.to(tl.float32) * c + other * s).to(x.dtype)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def load_block(
    cache: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    block_keys: tl.constexpr,
    masked: tl.constexpr,
) -> tl.tensor:
    """Load positions of one head's cache. [block_keys, block_dim], T.

    Args:
        cache: [capacity, head_dim], T.
        start: First position.
        end: Positions from here on are not read but zeros, if ``masked``.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two; the rest is zeros.
        block_keys: Positions.
        masked: False where all are known to be before ``end``.
    """
    n, d = tl.arange(0, block_keys), tl.arange(0, block_dim)
    places = cache + start * head_dim + n[:, None] * head_dim + d[None, :]
    if masked:
        is_real = (start + n < end)[:, None] & (d < head_dim)[None, :]
        block = tl.load(places, mask=is_real, other=0.0)
    elif block_dim == head_dim:
        block = tl.load(places)
    else:
        block = tl.load(places, mask=(d < head_dim)[None, :], other=0.0)
    return block


@triton.jit  # type: ignore[untyped-decorator]
def attend(
    queries: tl.tensor,
    last: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    begin: tl.tensor,
    stop: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    m: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    block_keys: tl.constexpr,
    masked: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Let queries see positions from ``begin`` to ``stop``, in blocks. Returns m, total and out.

    Args:
        queries: [rows, block_dim], T.
        last: Last position that each query sees. [rows], int32.
        keys: One head's cache. [capacity, head_dim], T.
        values: Likewise.
        begin: First position.
        stop: One past the last; the last block may go beyond it.
        end: Positions from here on hold nothing.
        scale: Of the scores, above zero; holds log2(e).
        m: Largest score so far, times scale. [rows], float32.
        total: Sum of powers so far. [rows], float32.
        out: Sum of values so far. [rows, block_dim], float32.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two.
        block_keys: Positions of a block.
        masked: False where every query sees every position of every block.
    """
    # the few masked blocks are not worth the registers of loading ahead
    for start in tl.range(begin, stop, block_keys, num_stages=1 if masked else None):
        block = load_block(keys, start, end, head_dim, block_dim, block_keys, masked)
        scores = tl.dot(queries, tl.trans(block), input_precision="ieee")
        if masked:
            position = start + tl.arange(0, block_keys)
            scores = tl.where(position[None, :] <= last[:, None], scores, float("-inf"))
        new = tl.maximum(m, tl.max(scores, 1) * scale)
        shift = new
        if masked:
            # a query that has seen nothing yet: -inf less -inf is no number
            shift = tl.where(new == float("-inf"), 0.0, new)
        powers = tl.exp2(scores * scale - shift[:, None])
        decay = tl.exp2(m - shift)
        total = total * decay + tl.sum(powers, 1)
        block = load_block(values, start, end, head_dim, block_dim, block_keys, masked)
        out = tl.dot(powers.to(block.dtype), block, out * decay[:, None], input_precision="ieee")
        m = new
    return m, total, out
