"""CachedAttention for a chunk of queries: one program a block of queries and a head.

Blocks of keys that every query sees come first, without masks; then those of the diagonal. Programs
that run at the same time share a key/value head, so that the cache is read from memory once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.cached_attention_tiles import attend, load_rotated

__all__ = ["attention_chunk"]


@triton.jit(do_not_specialize=["seq_len", "scale_bits"])  # type: ignore[untyped-decorator]
def attention_chunk(
    q: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    past_len: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    y: tl.tensor,
    q_batch: int,
    q_token: int,
    seq_len: int,
    capacity: int,
    scale_bits: int,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    rotary: tl.constexpr,
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
) -> None:
    """Attend. Grid: [query blocks, heads, batch].

    Args:
        q: [batch, seq_len, heads, head_dim], T; sequences ``q_batch`` and tokens ``q_token``
            elements apart.
        cos: [positions, head_dim / 2], float32; not read without ``rotary``.
        sin: Likewise.
        past_len: Positions held before this call. [batch], int32.
        key_cache: Holds the new keys too. [slots, kv_heads, capacity, head_dim], T.
        value_cache: Likewise.
        y: Written. [batch, seq_len, heads, head_dim], T.
        q_batch: Elements; int64.
        q_token: Elements.
        seq_len: New tokens.
        capacity: Positions of a cache.
        scale_bits: Scale of the scores times log2(e), a float32's bits.
        group: Heads that share a key/value head.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two.
        rotary: Whether queries are rotated.
        block_queries: Queries of a program, a power of two.
        block_keys: Positions of a step, a power of two.
    """
    head, row, heads = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(1)
    # the longest first
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * block_queries
    tokens = first + tl.arange(0, block_queries)
    is_token = tokens < seq_len
    past = tl.load(past_len + row)
    end = tl.minimum(past + tl.minimum(first + block_queries, seq_len), capacity)
    full = tl.minimum(past + first + 1, capacity) // block_keys * block_keys
    last = past + tokens

    q_rows = q + row * q_batch + tokens.to(tl.int64) * q_token + head * head_dim
    queries = load_rotated(q_rows, is_token, last, cos, sin, head_dim, block_dim, rotary)
    base = (row * (heads // group) + head // group) * capacity * head_dim
    keys, values = key_cache + base, value_cache + base
    scale = tl.cast(scale_bits, tl.float32, bitcast=True)
    m = tl.full([block_queries], float("-inf"), tl.float32)
    total = tl.zeros([block_queries], tl.float32)
    out = tl.zeros([block_queries, block_dim], tl.float32)
    m, total, out = attend(
        queries, last, keys, values, 0, full, end, scale, m, total, out,
        head_dim, block_dim, block_keys, False,
    )  # fmt: skip
    m, total, out = attend(
        queries, last, keys, values, full, end, end, scale, m, total, out,
        head_dim, block_dim, block_keys, True,
    )  # fmt: skip
    d = tl.arange(0, block_dim)
    y_rows = ((row * seq_len + tokens) * heads + head) * head_dim
    is_real = is_token[:, None] & (d < head_dim)[None, :]
    out = (out / total[:, None]).to(y.dtype.element_ty)
    tl.store(y + y_rows[:, None] + d[None, :], out, mask=is_real)
