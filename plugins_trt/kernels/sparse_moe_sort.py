"""SparseMoE: a stable counting sort of (token, expert) slots by expert.

Without atomics, so the order is always the same. A slot's place is the number of slots before it:
of all lower experts, of earlier blocks of the same expert, and of earlier tokens of its own block.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["sort_slots"]


@triton.jit  # type: ignore[untyped-decorator]
def sort_slots(
    selected_experts: tl.tensor,
    block_counts: tl.tensor,
    sorted_slots: tl.tensor,
    expert_ends: tl.tensor,
    num_tokens: int,
    num_experts: int,
    top_k: int,
    block_tokens: tl.constexpr,
    block_experts: tl.constexpr,
    block_rows: tl.constexpr,
) -> None:
    """Place the slots of ``block_tokens`` tokens. Grid: [ceil(num_tokens / block_tokens)].

    Args:
        selected_experts: Each row ascends without repeats. [num_tokens, top_k], int32.
        block_counts: Tokens by block and expert. [grid, num_experts], int32.
        sorted_slots: Written: slots by expert, then by token. [num_tokens * top_k], int32.
        expert_ends: Written: where each expert's slots end in it. [num_experts], int32.
        num_tokens: Rows of ``selected_experts``.
        num_experts: At most ``block_experts``.
        top_k: Experts of each token.
        block_tokens: Tokens of one program, a power of two; the same as of `route_tokens`.
        block_experts: A power of two.
        block_rows: Rows of ``block_counts`` that are summed at once, a power of two.
    """
    block = tl.program_id(0)
    experts = tl.arange(0, block_experts)
    is_expert = experts < num_experts
    before = tl.zeros([block_experts], tl.int32)
    total = tl.zeros([block_experts], tl.int32)
    for start in range(0, tl.num_programs(0), block_rows):
        rows = start + tl.arange(0, block_rows)
        is_real = (rows < tl.num_programs(0))[:, None] & is_expert[None, :]
        offsets = rows[:, None] * num_experts + experts[None, :]
        counts = tl.load(block_counts + offsets, mask=is_real, other=0)
        total += tl.sum(counts, axis=0)
        before += tl.sum(tl.where((rows < block)[:, None], counts, 0), axis=0)
    ends = tl.cumsum(total, axis=0)
    if block == 0:
        tl.store(expert_ends + experts, ends, is_expert)

    tokens = block * block_tokens + tl.arange(0, block_tokens)
    is_token = tokens < num_tokens
    chosen = tl.zeros([block_tokens, block_experts], tl.int32)
    for k in range(top_k):
        expert = tl.load(selected_experts + tokens * top_k + k, mask=is_token, other=-1)
        chosen += (expert[:, None] == experts[None, :]).to(tl.int32)
    places = tl.cumsum(chosen, axis=0) - chosen + (ends - total + before)[None, :]
    for k in range(top_k):
        expert = tl.load(selected_experts + tokens * top_k + k, mask=is_token, other=-1)
        is_own = expert[:, None] == experts[None, :]
        place = tl.sum(tl.where(is_own, places, 0), axis=1)
        tl.store(sorted_slots + place, tokens * top_k + k, is_token)
