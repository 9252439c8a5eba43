"""SparseMoE, last kernel: each token's weighted sum over its experts, in ascending order.

The order depends on the slots, not on which program is first, so every run gives the same bits.
Product and running sum are rounded to T, as in the specification.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["combine_slots"]


@triton.jit  # type: ignore[untyped-decorator]
def combine_slots(
    expert_outputs: tl.tensor,
    routing_weights: tl.tensor,
    y: tl.tensor,
    num_tokens: int,
    hidden: int,
    top_k: int,
    parts: int,
    block_columns: tl.constexpr,
) -> None:
    """Compute y[token] = sum over its slots of weight * T(sum over parts of the expert's output).

    Grid: [num_tokens, ceil(hidden / block_columns)].

    Args:
        expert_outputs: [parts, num_tokens * top_k, hidden], T or float32.
        routing_weights: [num_tokens, top_k], T.
        y: Written. [num_tokens, hidden], T.
        num_tokens: Rows of y.
        hidden: Columns of y.
        top_k: Slots of each token.
        parts: Of each slot's output, added in float32 in ascending order.
        block_columns: Columns of one program.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    is_column = columns < hidden
    dtype: tl.constexpr = y.dtype.element_ty
    running = tl.zeros([block_columns], dtype)
    for k in range(top_k):
        slot = token * top_k + k
        output = tl.zeros([block_columns], tl.float32)
        for part in range(parts):
            row = (part * num_tokens * top_k + slot) * hidden
            values = tl.load(expert_outputs + row + columns, mask=is_column, other=0.0)
            output += values.to(tl.float32)
        weight = tl.load(routing_weights + slot).to(tl.float32)
        weighted = (output.to(dtype).to(tl.float32) * weight).to(dtype)
        running = (running.to(tl.float32) + weighted.to(tl.float32)).to(dtype)
    tl.store(y + token * hidden + columns, running, mask=is_column)
