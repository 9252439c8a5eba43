"""CachedAttention for few queries: limited by reading the cache, so its positions are divided.

The positions of all sequences together, in blocks, are divided among ``parts`` programs for each
key/value head. A part has positions of one sequence only, so it may be shorter. `combine_parts`
adds the parts in order. Queries and heads that share a key/value head are the rows of one tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.cached_attention_tiles import attend, load_rotated

__all__ = ["attention_decode", "combine_parts"]


@triton.jit  # type: ignore[untyped-decorator]
def deal_parts(
    past_len: tl.tensor,
    seq_len: int,
    capacity: int,
    batch: int,
    parts: int,
    block_keys: tl.constexpr,
    min_blocks: tl.constexpr,
    block_batch: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return a part's blocks; for each sequence, the parts up to its end, and its own parts."""
    rows = tl.arange(0, block_batch)
    past = tl.load(past_len + rows, mask=rows < batch, other=0)
    lengths = tl.where(rows < batch, tl.minimum(past + seq_len, capacity), 0)
    blocks = tl.cdiv(lengths, block_keys)
    part_blocks = tl.maximum(tl.cdiv(tl.sum(blocks, 0), parts), min_blocks)
    counts = tl.cdiv(blocks, part_blocks)
    return part_blocks, tl.cumsum(counts, 0), counts


@triton.jit(do_not_specialize=["seq_len", "scale_bits", "batch", "parts"])  # type: ignore[untyped-decorator]
def attention_decode(
    q: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    past_len: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    part_outputs: tl.tensor,
    part_logs: tl.tensor,
    q_batch: int,
    q_token: int,
    seq_len: int,
    capacity: int,
    scale_bits: int,
    batch: int,
    parts: int,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    rotary: tl.constexpr,
    block_rows: tl.constexpr,
    block_keys: tl.constexpr,
    min_blocks: tl.constexpr,
    block_batch: tl.constexpr,
) -> None:
    """Attend to one part of one sequence. Grid: [slots, kv_heads].

    Args:
        q: [batch, seq_len, heads, head_dim], T; sequences ``q_batch`` and tokens ``q_token``
            elements apart.
        cos: [positions, head_dim / 2], float32; not read without ``rotary``.
        sin: Likewise.
        past_len: Positions held before this call. [batch], int32.
        key_cache: Holds the new keys too. [batch or more, kv_heads, capacity, head_dim], T.
        value_cache: Likewise.
        part_outputs: Written: means of values. [kv_heads, slots, seq_len * group, head_dim],
            float32.
        part_logs: Written: log2 of the sum of powers. [kv_heads, slots, seq_len * group], float32.
        q_batch: Elements; int64.
        q_token: Elements.
        seq_len: New tokens; ``seq_len * group`` is at most ``block_rows``.
        capacity: Positions of a cache.
        scale_bits: Scale of the scores times log2(e), a float32's bits.
        batch: Sequences, at most ``block_batch``.
        parts: Into which all positions are divided, but for what a sequence's end leaves over.
        group: Heads that share a key/value head.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two.
        rotary: Whether queries are rotated.
        block_rows: Rows of the tile, a power of two.
        block_keys: Positions of a step, a power of two.
        min_blocks: Steps of a part, at least.
        block_batch: A power of two.
    """
    slot, head = tl.program_id(0), tl.program_id(1)
    part_blocks, ends, counts = deal_parts(
        past_len, seq_len, capacity, batch, parts, block_keys, min_blocks, block_batch
    )
    row = tl.sum((ends <= slot).to(tl.int32), 0)
    if row >= batch:
        return
    before = tl.sum(tl.where(tl.arange(0, block_batch) < row, counts, 0), 0)
    past = tl.load(past_len + row)
    begin = (slot - before) * part_blocks * block_keys
    end = tl.minimum(begin + part_blocks * block_keys, tl.minimum(past + seq_len, capacity))
    full = tl.maximum(tl.minimum(end, past + 1) // block_keys * block_keys, begin)

    r = tl.arange(0, block_rows)
    tokens = r // group
    is_row = tokens < seq_len
    last = past + tokens
    q_rows = q + row.to(tl.int64) * q_batch + tokens * q_token
    q_rows += (head * group + r % group) * head_dim
    queries = load_rotated(q_rows, is_row, last, cos, sin, head_dim, block_dim, rotary)
    base = (row * tl.num_programs(1) + head).to(tl.int64) * capacity * head_dim
    keys, values = key_cache + base, value_cache + base
    scale = tl.cast(scale_bits, tl.float32, bitcast=True)
    m = tl.full([block_rows], float("-inf"), tl.float32)
    total = tl.zeros([block_rows], tl.float32)
    out = tl.zeros([block_rows, block_dim], tl.float32)
    m, total, out = attend(
        queries, last, keys, values, begin, full, end, scale, m, total, out,
        head_dim, block_dim, block_keys, False,
    )  # fmt: skip
    m, total, out = attend(
        queries, last, keys, values, full, end, end, scale, m, total, out,
        head_dim, block_dim, block_keys, True,
    )  # fmt: skip
    d = tl.arange(0, block_dim)
    places = (head * tl.num_programs(0) + slot) * seq_len * group + r
    is_real = is_row[:, None] & (d < head_dim)[None, :]
    # a query before this part saw nothing of it: zeros, and a weight of nothing since m is -inf
    total = tl.where(total > 0, total, 1.0)
    means = out / total[:, None]
    tl.store(part_outputs + places[:, None] * head_dim + d[None, :], means, mask=is_real)
    tl.store(part_logs + places, m + tl.log2(total), mask=is_row)


@triton.jit(do_not_specialize=["seq_len", "batch", "parts", "slots"])  # type: ignore[untyped-decorator]
def combine_parts(
    part_outputs: tl.tensor,
    part_logs: tl.tensor,
    past_len: tl.tensor,
    y: tl.tensor,
    seq_len: int,
    capacity: int,
    batch: int,
    parts: int,
    slots: int,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    block_parts: tl.constexpr,
    block_keys: tl.constexpr,
    min_blocks: tl.constexpr,
    block_batch: tl.constexpr,
) -> None:
    """Weight the parts of one sequence and add them. Grid: [seq_len * group, kv_heads, batch].

    Args:
        part_outputs: [kv_heads, slots, seq_len * group, head_dim], float32.
        part_logs: [kv_heads, slots, seq_len * group], float32.
        past_len: [batch], int32.
        y: Written. [batch, seq_len, kv_heads * group, head_dim], T.
        seq_len: As for `attention_decode`, like all that is not named here.
        capacity: Positions of a cache.
        batch: Sequences.
        parts: Into which all positions were divided.
        slots: Parts that there is room for.
        group: Heads that share a key/value head.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two.
        block_parts: Parts of a step, a power of two.
        block_keys: Positions of a step of `attention_decode`.
        min_blocks: Steps of a part, at least.
        block_batch: A power of two.
    """
    r, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, ends, counts = deal_parts(
        past_len, seq_len, capacity, batch, parts, block_keys, min_blocks, block_batch
    )
    rows = tl.arange(0, block_batch)
    stop = tl.sum(tl.where(rows == row, ends, 0), 0)
    begin = stop - tl.sum(tl.where(rows == row, counts, 0), 0)
    d = tl.arange(0, block_dim)
    m = float("-inf")
    total = 0.0
    out = tl.zeros([block_dim], tl.float32)
    for start in range(begin, stop, block_parts):
        slot = start + tl.arange(0, block_parts)
        places = (head * slots + slot) * seq_len * group + r
        is_part = slot < stop
        logs = tl.load(part_logs + places, mask=is_part, other=float("-inf"))
        is_real = is_part[:, None] & (d < head_dim)[None, :]
        means = tl.load(part_outputs + places[:, None] * head_dim + d[None, :], is_real, 0.0)
        # every query sees the first position, so the first part's is finite
        new = tl.maximum(m, tl.max(logs, 0))
        weights = tl.exp2(logs - new)
        decay = tl.exp2(m - new)
        total = total * decay + tl.sum(weights, 0)
        out = out * decay + tl.sum(means * weights[:, None], 0)
        m = new
    token = row.to(tl.int64) * seq_len + r // group
    place = (token * tl.num_programs(1) * group + head * group + r % group) * head_dim
    tl.store(y + place + d, (out / total).to(y.dtype.element_ty), mask=d < head_dim)
