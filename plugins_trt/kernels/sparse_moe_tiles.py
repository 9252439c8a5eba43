"""SparseMoE: the tile products that the grouped and the decode kernels share.

Weights are float (T), int8 or packed int4; the pointer's type tells which. The formats are in
`sparse_moe_formats`. Products accumulate in float32, float32 operands without TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["down_tile", "gate_up_tile"]


@triton.jit  # type: ignore[untyped-decorator]
def gate_up_tile(
    x_rows: tl.tensor,
    is_row: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    expert: tl.tensor,
    columns: tl.tensor,
    hidden: int,
    intermediate: int,
    block_depth: tl.constexpr,
) -> tl.tensor:
    """Return silu(x gate') * (x up') of some rows and columns. [rows, columns], float32.

    Args:
        x_rows: Where each row of x begins. Pointers [rows].
        is_row: Which rows are real; the others count as zeros. [rows].
        weights: Gate's rows, then up's. [num_experts, 2 * intermediate, hidden].
        scales: As the format has it; never read for float weights.
        expert: Whose weights.
        columns: Which of ``intermediate``. [columns], int32.
        hidden: Length of the reduction.
        intermediate: Columns of one expert.
        block_depth: Elements of one step along it.
    """
    dtype: tl.constexpr = x_rows.dtype.element_ty
    is_column = columns < intermediate
    rows = expert.to(tl.int64) * 2 * intermediate + columns
    gate = tl.zeros([is_row.shape[0], columns.shape[0]], tl.float32)
    up = tl.zeros([is_row.shape[0], columns.shape[0]], tl.float32)
    for k in range(0, hidden, block_depth):
        x = _load_x(x_rows, is_row, k, hidden, block_depth)
        w = _load_weights(weights, scales, rows, is_column, k, hidden, hidden, block_depth, dtype)
        gate = tl.dot(x, tl.trans(w), gate, input_precision="ieee")
        w = _load_weights(
            weights, scales, rows + intermediate, is_column, k, hidden, hidden, block_depth, dtype
        )
        up = tl.dot(x, tl.trans(w), up, input_precision="ieee")
    gate = _apply_scales(gate, weights, scales, rows, is_column)
    up = _apply_scales(up, weights, scales, rows + intermediate, is_column)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit  # type: ignore[untyped-decorator]
def down_tile(
    x_rows: tl.tensor,
    is_row: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    expert: tl.tensor,
    columns: tl.tensor,
    hidden: int,
    intermediate: int,
    begin: int,
    end: int,
    block_depth: tl.constexpr,
) -> tl.tensor:
    """Return x down' of some rows and columns, over part of the reduction. [rows, columns], float32.

    Args:
        x_rows: Where each row of the activation begins. Pointers [rows].
        is_row: Which rows are real; the others count as zeros. [rows].
        weights: [num_experts, hidden, intermediate].
        scales: As the format has it; never read for float weights.
        expert: Whose weights.
        columns: Which of ``hidden``. [columns], int32.
        hidden: Columns of one expert.
        intermediate: Length of the whole reduction.
        begin: First element of this part; a multiple of 128, or of ``block_depth`` for float and
            int8.
        end: One past its last, at most ``intermediate``.
        block_depth: Elements of one step.
    """
    dtype: tl.constexpr = x_rows.dtype.element_ty
    is_column = columns < hidden
    rows = expert.to(tl.int64) * hidden + columns
    y = tl.zeros([is_row.shape[0], columns.shape[0]], tl.float32)
    for k in range(begin, end, block_depth):
        x = _load_x(x_rows, is_row, k, end, block_depth)
        w = _load_weights(
            weights, scales, rows, is_column, k, end, intermediate, block_depth, dtype
        )
        y = tl.dot(x, tl.trans(w), y, input_precision="ieee")
    return _apply_scales(y, weights, scales, rows, is_column)


@triton.jit  # type: ignore[untyped-decorator]
def _load_x(
    x_rows: tl.tensor, is_row: tl.tensor, k: int, end: int, block_depth: tl.constexpr
) -> tl.tensor:
    depth = k + tl.arange(0, block_depth)
    is_real = is_row[:, None] & (depth < end)[None, :]
    return tl.load(x_rows[:, None] + depth[None, :], mask=is_real, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _load_weights(
    weights: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    is_column: tl.tensor,
    k: int,
    end: int,
    length: int,
    block_depth: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """Return weights of some rows from k on, as T; int8 still without its scale. [rows, depth]."""
    if weights.dtype.element_ty == tl.uint8:
        # halves spelt so that Triton sees them to be multiples of 16, and loads 16 bytes at once
        bytes_ = k // block_depth * (block_depth // 2) + tl.arange(0, block_depth // 2)
        is_real = is_column[:, None] & (bytes_ < end // 32 * 16)[None, :]
        offsets = rows[:, None] * (length // 32 * 16) + bytes_[None, :]
        packed = tl.load(weights + offsets, mask=is_real, other=0x88)
        # 2^23 has unit steps, so a code in its low bits is a sum; a conversion takes four times as
        # long
        bits = tl.interleave(packed & 15, packed >> 4).to(tl.int32) | 0x4B000000
        codes = bits.to(tl.float32, bitcast=True) - (8388608.0 + 8.0)
        groups = rows * ((length + 127) // 128) + k // 128
        scale = tl.load(scales + groups, mask=is_column, other=0.0).to(tl.float32)
        tile = (codes * scale[:, None]).to(dtype)
    else:
        depth = k + tl.arange(0, block_depth)
        is_real = is_column[:, None] & (depth < end)[None, :]
        offsets = rows[:, None] * length + depth[None, :]
        tile = tl.load(weights + offsets, mask=is_real, other=0).to(dtype)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _apply_scales(
    y: tl.tensor, weights: tl.tensor, scales: tl.tensor, rows: tl.tensor, is_column: tl.tensor
) -> tl.tensor:
    if weights.dtype.element_ty == tl.int8:
        y *= tl.load(scales + rows, mask=is_column, other=0.0).to(tl.float32)[None, :]
    return y
