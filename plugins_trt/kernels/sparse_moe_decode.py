"""SparseMoE for few tokens: limited by reading weights, so each chosen expert is read once.

The tokens fit in one tile, so nothing is sorted: each program belongs to a slot. If the slot is the
first one of its expert, the program works for all tokens of that expert; otherwise it does nothing.
The second product splits its reduction into parts that `combine_slots` adds in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.sparse_moe_tiles import down_tile, gate_up_tile

__all__ = ["decode_down", "decode_gate_up"]


@triton.jit  # type: ignore[untyped-decorator]
def decode_gate_up(
    x: tl.tensor,
    selected_experts: tl.tensor,
    gate_up: tl.tensor,
    gate_up_scales: tl.tensor,
    activations: tl.tensor,
    num_tokens: int,
    hidden: int,
    intermediate: int,
    top_k: int,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Compute silu(x gate') * (x up') for every slot.

    Grid: [ceil(intermediate / block_columns), num_slots].

    Args:
        x: [num_tokens, hidden], T.
        selected_experts: [num_tokens, top_k], int32.
        gate_up: [num_experts, 2 * intermediate, hidden], T, or a format of `sparse_moe_formats`.
        gate_up_scales: That format's, float32; any address for T.
        activations: Written. [num_slots, intermediate], T.
        num_tokens: At most ``block_rows``.
        hidden: Columns of x.
        intermediate: Columns of the activation.
        top_k: Slots of each token.
        block_rows: 16.
        block_columns: Columns of one tile.
        block_depth: Elements of one step along the reduction; divides 128.
    """
    expert, slots = _find_slots(selected_experts, num_tokens, top_k, block_rows)
    if tl.min(slots, axis=0) != tl.program_id(1):
        return
    is_row = slots < num_tokens * top_k
    first_column = tl.program_id(0) * block_columns
    columns = first_column + tl.arange(0, block_columns)
    x_rows = x + tl.arange(0, block_rows) * hidden
    tile = gate_up_tile(
        x_rows,
        is_row,
        gate_up,
        gate_up_scales,
        expert,
        first_column,
        hidden,
        intermediate,
        block_columns,
        block_depth,
    )
    targets = activations + slots[:, None] * intermediate + columns[None, :]
    is_real = is_row[:, None] & (columns < intermediate)[None, :]
    tl.store(targets, tile.to(activations.dtype.element_ty), mask=is_real)


@triton.jit  # type: ignore[untyped-decorator]
def decode_down(
    activations: tl.tensor,
    selected_experts: tl.tensor,
    down: tl.tensor,
    down_scales: tl.tensor,
    expert_outputs: tl.tensor,
    num_tokens: int,
    hidden: int,
    intermediate: int,
    top_k: int,
    part_length: int,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Compute activations down' for every slot, in parts of the reduction.

    Grid: [ceil(hidden / block_columns), num_slots, parts].

    Args:
        activations: [num_slots, intermediate], T.
        selected_experts: [num_tokens, top_k], int32.
        down: [num_experts, hidden, intermediate], T, or a format of `sparse_moe_formats`.
        down_scales: That format's, float32; any address for T.
        expert_outputs: Written, not weighted. [parts, num_slots, hidden], float32.
        num_tokens: At most ``block_rows``.
        hidden: Columns of the output.
        intermediate: Columns of the activation.
        top_k: Slots of each token.
        part_length: Reduction of one part; a multiple of 128.
        block_rows: 16.
        block_columns: Columns of one tile.
        block_depth: Elements of one step along the reduction; divides 128.
    """
    expert, slots = _find_slots(selected_experts, num_tokens, top_k, block_rows)
    if tl.min(slots, axis=0) != tl.program_id(1):
        return
    is_row = slots < num_tokens * top_k
    columns = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    begin = tl.program_id(2) * part_length
    tile = down_tile(
        activations + slots * intermediate,
        is_row,
        down,
        down_scales,
        expert,
        columns,
        hidden,
        intermediate,
        begin,
        tl.minimum(begin + part_length, intermediate),
        block_depth,
    )
    rows = tl.program_id(2) * num_tokens * top_k + slots
    targets = expert_outputs + rows[:, None] * hidden + columns[None, :]
    is_real = is_row[:, None] & (columns < hidden)[None, :]
    tl.store(targets, tile, mask=is_real)


@triton.jit  # type: ignore[untyped-decorator]
def _find_slots(
    selected_experts: tl.tensor, num_tokens: int, top_k: int, block_rows: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return this program's expert, and each token's slot with it, or the number of slots."""
    expert = tl.load(selected_experts + tl.program_id(1))
    tokens = tl.arange(0, block_rows)
    slots = tl.full([block_rows], 0, tl.int32) + num_tokens * top_k
    for k in range(top_k):
        candidates = tokens * top_k + k
        others = tl.load(selected_experts + candidates, mask=tokens < num_tokens, other=-1)
        slots = tl.where(others == expert, candidates, slots)
    return expert, slots
