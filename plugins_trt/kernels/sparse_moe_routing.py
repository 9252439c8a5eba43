"""SparseMoE, first kernel: each token's experts and their weights.

Softmax in float32 over all experts, the `top_k` largest, not renormalised, cast to T. Of equal
experts the one with the lower number wins, as in ONNX's TopK. Experts are chosen by their logits:
softmax keeps their order, and so rounding of an exponential cannot change the choice.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["route_tokens"]


@triton.jit  # type: ignore[untyped-decorator]
def route_tokens(
    router_logits: tl.tensor,
    routing_weights: tl.tensor,
    selected_experts: tl.tensor,
    block_counts: tl.tensor,
    num_tokens: int,
    num_experts: int,
    top_k: int,
    block_tokens: tl.constexpr,
    block_experts: tl.constexpr,
) -> None:
    """Route ``block_tokens`` tokens. Grid: [ceil(num_tokens / block_tokens)].

    rank(e) = how many experts beat e; e is chosen where rank(e) < top_k. A NaN among the logits
    gives NaN weights, yet always `top_k` experts.

    Args:
        router_logits: [num_tokens, num_experts], T.
        routing_weights: Written. [num_tokens, top_k], T.
        selected_experts: Written; each row ascends. [num_tokens, top_k], int32.
        block_counts: Written: tokens of this block by expert. [grid, num_experts], int32.
        num_tokens: Rows of ``router_logits``.
        num_experts: At most ``block_experts``.
        top_k: Experts of each token.
        block_tokens: Tokens of one program, a power of two.
        block_experts: A power of two.
    """
    block = tl.program_id(0)
    tokens = block * block_tokens + tl.arange(0, block_tokens)
    experts = tl.arange(0, block_experts)
    is_token = tokens < num_tokens
    is_real = is_token[:, None] & (experts < num_experts)[None, :]
    rows = router_logits + tokens.to(tl.int64) * num_experts

    logits = tl.load(rows[:, None] + experts[None, :], mask=is_real, other=float("-inf"))
    logits = logits.to(tl.float32)
    largest = tl.max(tl.where(is_token[:, None], logits, 0.0), axis=1)
    exponentials = tl.where(is_real, tl.exp(logits - largest[:, None]), 0.0)
    total = tl.sum(exponentials, axis=1)
    weights = exponentials / tl.where(is_token, total, 1.0)[:, None]

    rank = tl.zeros([block_tokens, block_experts], tl.int32)
    for other in range(num_experts):
        rival = tl.load(rows + other, mask=is_token, other=0.0).to(tl.float32)[:, None]
        wins_tie = (rival == logits) & (experts > other)[None, :]
        rank += ((rival > logits) | wins_tie).to(tl.int32)
    chosen = (is_real & (rank < top_k)).to(tl.int32)
    slot = tl.cumsum(chosen, axis=1) - chosen
    # more than top_k only where NaN defeats the comparison
    is_chosen = (chosen > 0) & (slot < top_k)

    targets = tokens.to(tl.int64)[:, None] * top_k + slot
    tl.store(routing_weights + targets, weights.to(routing_weights.dtype.element_ty), is_chosen)
    experts_of_rows = tl.broadcast_to(experts[None, :], [block_tokens, block_experts])
    tl.store(selected_experts + targets, experts_of_rows, is_chosen)
    counts = tl.sum(is_chosen.to(tl.int32), axis=0)
    tl.store(block_counts + block * num_experts + experts, counts, experts < num_experts)
