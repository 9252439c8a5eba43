"""SparseMoE: the tile products that the grouped and the decode kernels share.

Weights are float (T), int8 or packed int4; the pointer's type tells which. The formats are in
`sparse_moe_formats`. Products accumulate in float32, float32 operands without TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.sparse_moe_codes import int4_values, int8_values

__all__ = ["down_tile", "gate_up_tile"]


@triton.jit  # type: ignore[untyped-decorator]
def gate_up_tile(
    x_rows: tl.tensor,
    is_row: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    expert: tl.tensor,
    first_column: tl.tensor,
    hidden: int,
    intermediate: int,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> tl.tensor:
    """Return silu(x gate') * (x up') of some rows and columns. [rows, columns], float32.

    Args:
        x_rows: Where each row of x begins. Pointers [rows].
        is_row: Which rows are real; the others count as zeros. [rows].
        weights: Gate's rows, then up's. [num_experts, 2 * intermediate, hidden].
        scales: As the format has it; never read for float weights.
        expert: Whose weights.
        first_column: Of ``intermediate``.
        hidden: Length of the reduction.
        intermediate: Columns of one expert.
        block_columns: Columns of the result, as many of gate and of up.
        block_depth: Elements of one step along it.
    """
    dtype: tl.constexpr = x_rows.dtype.element_ty
    first_row = expert.to(tl.int64) * 2 * intermediate
    # of T, one product of 128 rows reads shared memory 24 times for 64 HMMA, two 36 times, more than
    # sm_80 has time for; with fewer rows, two take fewer instructions. Of float32 one would spill
    is_8_bit: tl.constexpr = weights.dtype.element_ty.primitive_bitwidth == 8
    if dtype != tl.float32 and (is_8_bit or is_row.shape[0] >= 128):
        gate, up = _one_product(
            x_rows, is_row, weights, scales, first_row, first_column, hidden, intermediate,
            block_columns, block_depth,
        )  # fmt: skip
    else:
        gate, up = _two_products(
            x_rows, is_row, weights, scales, first_row, first_column, hidden, intermediate,
            block_columns, block_depth,
        )  # fmt: skip
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
def _two_products(
    x_rows: tl.tensor,
    is_row: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    first_row: tl.tensor,
    first_column: tl.tensor,
    hidden: int,
    intermediate: int,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return x gate' and x up'. [rows, columns], float32."""
    dtype: tl.constexpr = x_rows.dtype.element_ty
    columns = first_column + tl.arange(0, block_columns)
    is_column = columns < intermediate
    rows = first_row + columns
    gate = tl.zeros([is_row.shape[0], block_columns], tl.float32)
    up = tl.zeros([is_row.shape[0], block_columns], tl.float32)
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
    return gate, up


@triton.jit  # type: ignore[untyped-decorator]
def _one_product(
    x_rows: tl.tensor,
    is_row: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    first_row: tl.tensor,
    first_column: tl.tensor,
    hidden: int,
    intermediate: int,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the same of one product with gate's and up's columns in turn.

    With twice the columns fewer warps share one, and each warp loads its operands, and makes its own
    numbers of the codes.
    """
    dtype: tl.constexpr = x_rows.dtype.element_ty
    turns = tl.arange(0, 2 * block_columns)
    columns = first_column + turns // 2
    is_column = columns < intermediate
    rows = first_row + columns + turns % 2 * intermediate
    both = tl.zeros([is_row.shape[0], 2 * block_columns], tl.float32)
    for k in range(0, hidden, block_depth):
        x = _load_x(x_rows, is_row, k, hidden, block_depth)
        w = _load_weights(weights, scales, rows, is_column, k, hidden, hidden, block_depth, dtype)
        both = tl.dot(x, tl.trans(w), both, input_precision="ieee")
    both = _apply_scales(both, weights, scales, rows, is_column)
    gate, up = tl.split(tl.reshape(both, [is_row.shape[0], block_columns, 2]))
    return gate, up


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
        packed = tl.load(weights + offsets, mask=is_real, other=0)
        groups = rows * ((length + 127) // 128) + k // 128
        scale = tl.load(scales + groups, mask=is_column, other=0.0).to(tl.float32)
        tile = (int4_values(packed) * scale[:, None]).to(dtype)
    else:
        depth = k + tl.arange(0, block_depth)
        is_real = is_column[:, None] & (depth < end)[None, :]
        offsets = rows[:, None] * length + depth[None, :]
        tile = tl.load(weights + offsets, mask=is_real, other=0)
        if weights.dtype.element_ty == tl.int8:
            tile = int8_values(tile, dtype)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _apply_scales(
    y: tl.tensor, weights: tl.tensor, scales: tl.tensor, rows: tl.tensor, is_column: tl.tensor
) -> tl.tensor:
    if weights.dtype.element_ty == tl.int8:
        y *= tl.load(scales + rows, mask=is_column, other=0.0).to(tl.float32)[None, :]
    return y
