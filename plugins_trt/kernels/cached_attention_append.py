"""CachedAttention: writes new keys and values behind what the caches hold."""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.cached_attention_tiles import load_rotated

__all__ = ["append_cache"]


@triton.jit(do_not_specialize=["seq_len"])  # type: ignore[untyped-decorator]
def append_cache(
    k: tl.tensor,
    v: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    past_len: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    k_batch: int,
    k_token: int,
    v_batch: int,
    v_token: int,
    seq_len: int,
    capacity: int,
    head_dim: tl.constexpr,
    block_dim: tl.constexpr,
    rotary: tl.constexpr,
    block_tokens: tl.constexpr,
) -> None:
    """Write rotated keys and values. Grid: [token blocks, kv_heads, batch].

    Args:
        k: [batch, seq_len, kv_heads, head_dim], T; sequences ``k_batch`` and tokens ``k_token``
            elements apart.
        v: Likewise.
        cos: [positions, head_dim / 2], float32; not read without ``rotary``.
        sin: Likewise.
        past_len: Positions held before. [batch], int32.
        key_cache: Written from ``past_len`` on. [slots, kv_heads, capacity, head_dim], T.
        value_cache: Likewise.
        k_batch: Elements; int64.
        k_token: Elements.
        v_batch: Elements; int64.
        v_token: Elements.
        seq_len: New tokens.
        capacity: Positions of a cache; what does not fit is dropped.
        head_dim: Elements of a vector.
        block_dim: ``head_dim`` rounded up to a power of two.
        rotary: Whether keys are rotated.
        block_tokens: Tokens of a program, a power of two.
    """
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    positions = tl.load(past_len + row) + tokens
    is_token = (tokens < seq_len) & (positions < capacity)
    k_rows = k + row * k_batch + tokens.to(tl.int64) * k_token + head * head_dim
    v_rows = v + row * v_batch + tokens.to(tl.int64) * v_token + head * head_dim
    keys = load_rotated(k_rows, is_token, positions, cos, sin, head_dim, block_dim, rotary)
    values = load_rotated(v_rows, is_token, positions, cos, sin, head_dim, block_dim, False)
    d = tl.arange(0, block_dim)
    base = (row * tl.num_programs(1) + head) * capacity * head_dim
    places = base + positions[:, None] * head_dim + d[None, :]
    is_real = is_token[:, None] & (d < head_dim)[None, :]
    tl.store(key_cache + places, keys, mask=is_real)
    tl.store(value_cache + places, values, mask=is_real)
