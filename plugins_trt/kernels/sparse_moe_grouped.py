"""SparseMoE for many tokens: one matrix product for each expert, all experts in one launch.

The grid is the largest over all routings; each program finds its expert from `expert_ends`, and
programs without work exit. Tiles of one expert run at the same time, so that its weights are read
from memory once. Each slot's row is written to the slot's place; `combine_slots` applies the
weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.sparse_moe_tiles import down_tile, gate_up_tile

__all__ = ["grouped_down", "grouped_gate_up"]


@triton.jit  # type: ignore[untyped-decorator]
def grouped_gate_up(
    x: tl.tensor,
    sorted_slots: tl.tensor,
    expert_ends: tl.tensor,
    gate_up: tl.tensor,
    gate_up_scales: tl.tensor,
    activations: tl.tensor,
    hidden: int,
    intermediate: int,
    num_experts: int,
    top_k: int,
    block_experts: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
    group_rows: tl.constexpr,
) -> None:
    """Compute silu(x gate') * (x up'), sorted by expert.

    Grid: [row tiles * ceil(intermediate / block_columns)].

    Args:
        x: [num_tokens, hidden], T.
        sorted_slots: [num_slots], int32.
        expert_ends: [num_experts], int32.
        gate_up: [num_experts, 2 * intermediate, hidden], T, or a format of `sparse_moe_formats`.
        gate_up_scales: That format's, float32; any address for T.
        activations: Written; row r belongs to slot ``sorted_slots[r]``. [num_slots, intermediate],
            T.
        hidden: Columns of x.
        intermediate: Columns of the activation.
        num_experts: At most ``block_experts``.
        top_k: Slots of each token.
        block_experts: A power of two.
        block_rows: Rows of one tile.
        block_columns: Columns of one tile.
        block_depth: Elements of one step along the reduction; divides 128.
        group_rows: Row tiles that share a column of tiles before the next one begins.
    """
    expert, begin, end, column_tile = _find_tile(
        expert_ends,
        num_experts,
        tl.cdiv(intermediate, block_columns),
        block_experts,
        block_rows,
        group_rows,
    )
    if expert >= num_experts:
        return
    rows = begin + tl.arange(0, block_rows)
    is_row = rows < end
    tokens = tl.load(sorted_slots + rows, mask=is_row, other=0) // top_k
    first_column = column_tile * block_columns
    columns = first_column + tl.arange(0, block_columns)
    x_rows = x + tokens.to(tl.int64) * hidden
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
    targets = activations + rows.to(tl.int64)[:, None] * intermediate + columns[None, :]
    is_real = is_row[:, None] & (columns < intermediate)[None, :]
    tl.store(targets, tile.to(activations.dtype.element_ty), mask=is_real)


@triton.jit  # type: ignore[untyped-decorator]
def grouped_down(
    activations: tl.tensor,
    sorted_slots: tl.tensor,
    expert_ends: tl.tensor,
    down: tl.tensor,
    down_scales: tl.tensor,
    expert_outputs: tl.tensor,
    hidden: int,
    intermediate: int,
    num_experts: int,
    block_experts: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
    group_rows: tl.constexpr,
) -> None:
    """Compute activations down' and put every row back at its slot.

    Grid: [row tiles * ceil(hidden / block_columns)].

    Args:
        activations: Sorted by expert. [num_slots, intermediate], T.
        sorted_slots: [num_slots], int32.
        expert_ends: [num_experts], int32.
        down: [num_experts, hidden, intermediate], T, or a format of `sparse_moe_formats`.
        down_scales: That format's, float32; any address for T.
        expert_outputs: Written, not weighted. [num_slots, hidden], T.
        hidden: Columns of the output.
        intermediate: Columns of the activation.
        num_experts: At most ``block_experts``.
        block_experts: A power of two.
        block_rows: Rows of one tile.
        block_columns: Columns of one tile.
        block_depth: Elements of one step along the reduction; divides 128.
        group_rows: Row tiles that share a column of tiles before the next one begins.
    """
    expert, begin, end, column_tile = _find_tile(
        expert_ends,
        num_experts,
        tl.cdiv(hidden, block_columns),
        block_experts,
        block_rows,
        group_rows,
    )
    if expert >= num_experts:
        return
    rows = begin + tl.arange(0, block_rows)
    is_row = rows < end
    slots = tl.load(sorted_slots + rows, mask=is_row, other=0)
    columns = column_tile * block_columns + tl.arange(0, block_columns)
    x_rows = activations + rows.to(tl.int64) * intermediate
    tile = down_tile(
        x_rows,
        is_row,
        down,
        down_scales,
        expert,
        columns,
        hidden,
        intermediate,
        0,
        intermediate,
        block_depth,
    )
    targets = expert_outputs + slots.to(tl.int64)[:, None] * hidden + columns[None, :]
    is_real = is_row[:, None] & (columns < hidden)[None, :]
    tl.store(targets, tile.to(expert_outputs.dtype.element_ty), mask=is_real)


@triton.jit  # type: ignore[untyped-decorator]
def _find_tile(
    expert_ends: tl.tensor,
    num_experts: int,
    column_tiles: int,
    block_experts: tl.constexpr,
    block_rows: tl.constexpr,
    group_rows: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return this program's expert, first row, the expert's last row + 1, and column of tiles.

    The expert is `block_experts` where nothing is left to do.
    """
    program = tl.program_id(0)
    experts = tl.arange(0, block_experts)
    is_expert = experts < num_experts
    ends = tl.load(expert_ends + experts, mask=is_expert, other=0)
    begins = tl.load(expert_ends + experts - 1, mask=is_expert & (experts > 0), other=0)
    row_tiles = tl.cdiv(ends - begins, block_rows)
    last_programs = tl.cumsum(row_tiles, axis=0) * column_tiles
    expert = tl.sum((last_programs <= program).to(tl.int32), axis=0)

    is_own = experts == expert
    begin = tl.sum(tl.where(is_own, begins, 0), axis=0)
    end = tl.sum(tl.where(is_own, ends, 0), axis=0)
    own_tiles = tl.sum(tl.where(is_own, row_tiles, 0), axis=0)
    first = tl.sum(tl.where(is_own, last_programs, 0), axis=0) - own_tiles * column_tiles
    group = (program - first) // (group_rows * column_tiles)
    inside = (program - first) % (group_rows * column_tiles)
    height = tl.maximum(tl.minimum(own_tiles - group * group_rows, group_rows), 1)
    row_tile = group * group_rows + inside % height
    return expert, begin + row_tile * block_rows, end, inside // height
