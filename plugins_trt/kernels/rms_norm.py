"""RMSNorm on a GPU: with the residual sum before it, and of dt, B and C in one launch.

Sums and squares are float32; the normalised values are cast to T and then scaled in T, as in the
model. The plain versions are in `naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.elementwise import load_vector
from longllava_trt.plugins_trt.launch_plans.elementwise import plan_add_rms_norm, plan_norm_dt_b_c

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_rms_norm", "norm_dt_b_c", "rms_norm", "rms_norms_of_dt_b_c"]


@triton.jit  # type: ignore[untyped-decorator]
def inverse_root(squares: tl.tensor, size: int, eps_bits: int) -> tl.tensor:
    """Return what a row of ``size`` elements is multiplied by, from the sum of their squares."""
    eps = tl.cast(eps_bits, tl.float32, bitcast=True)
    return 1.0 / tl.sqrt(squares / size + eps)


@triton.jit  # type: ignore[untyped-decorator]
def inverse_root_of_row(x: tl.tensor, size: int, eps_bits: int, block: tl.constexpr) -> tl.tensor:
    """Return the same for a row that lies at ``x``, read ``block`` elements at a time."""
    columns = tl.arange(0, block)
    squares = tl.zeros([block], tl.float32)
    for first in range(0, size, block):
        part = load_vector(x + first + columns, first + columns < size)
        squares += part * part
    return inverse_root(tl.sum(squares, axis=0), size, eps_bits)


@triton.jit  # type: ignore[untyped-decorator]
def scaled(
    x: tl.tensor, scale: tl.tensor, weight: tl.tensor, mask: tl.tensor, dtype: tl.constexpr
) -> tl.tensor:
    """Return float32 ``x``, normalised by ``scale`` and multiplied by weights, as T."""
    normalised = (x * scale).to(dtype).to(tl.float32)
    return (load_vector(weight, mask) * normalised).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def scaled_row(
    x: tl.tensor,
    weight: tl.tensor,
    columns: tl.tensor,
    is_column: tl.tensor,
    size: int,
    eps_bits: int,
    dtype: tl.constexpr,
) -> tl.tensor:
    """Return a whole float32 row ``x``, whose masked elements are zero, normalised and scaled, as T."""
    scale = inverse_root(tl.sum(x * x, axis=0), size, eps_bits)
    return scaled(x, scale, weight + columns, is_column, dtype)


@triton.jit(do_not_specialize=["eps_bits"])  # type: ignore[untyped-decorator]
def add_rms_norm(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    total: tl.tensor,
    eps_bits: int,
    hidden: int,
    has_delta: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Normalise a row of x + delta. Grid: [rows].

    Args:
        x: [rows, hidden], T.
        delta: Not read without ``has_delta``. [rows, hidden], T.
        weight: [hidden], T.
        y: Written. [rows, hidden], T.
        total: x + delta; not written without ``has_delta``. May be ``x``. [rows, hidden], T.
        eps_bits: Added to the mean square; float32 as an integer of the same bits.
        hidden: Columns.
        has_delta: 1 where there is a sum.
        block: ``hidden`` rounded up to a power of two.
    """
    columns = tl.arange(0, block)
    is_column = columns < hidden
    here = tl.program_id(0).to(tl.int64) * hidden + columns
    dtype: tl.constexpr = y.dtype.element_ty
    row = load_vector(x + here, is_column)
    if has_delta:
        rounded = (row + load_vector(delta + here, is_column)).to(dtype)
        tl.store(total + here, rounded, mask=is_column)
        row = rounded.to(tl.float32)
    tl.store(
        y + here,
        scaled_row(row, weight, columns, is_column, hidden, eps_bits, dtype),
        mask=is_column,
    )


@triton.jit(do_not_specialize=["eps_bits"])  # type: ignore[untyped-decorator]
def norm_dt_b_c(
    projected: tl.tensor,
    dt_norm_weight: tl.tensor,
    b_norm_weight: tl.tensor,
    c_norm_weight: tl.tensor,
    dt_low: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    eps_bits: int,
    dt_rank: int,
    d_state: int,
    block_rank: tl.constexpr,
    block_states: tl.constexpr,
) -> None:
    """Normalise the three parts of a row, each by itself. Grid: [rows].

    Args:
        projected: dt, then B, then C. [rows, dt_rank + 2 * d_state], T.
        dt_norm_weight: [dt_rank], T.
        b_norm_weight: [d_state], T.
        c_norm_weight: [d_state], T.
        dt_low: Written. [rows, dt_rank], T.
        B: Written. [rows, d_state], T.
        C: Written. [rows, d_state], T.
        eps_bits: As for `add_rms_norm`.
        dt_rank: Columns of dt.
        d_state: Columns of B and of C.
        block_rank: Columns of dt that are read at once, a power of two.
        block_states: ``d_state`` rounded up to a power of two.
    """
    row = tl.program_id(0).to(tl.int64)
    projected += row * (dt_rank + 2 * d_state)
    dtype: tl.constexpr = dt_low.dtype.element_ty
    scale = inverse_root_of_row(projected, dt_rank, eps_bits, block_rank)
    for first in range(0, dt_rank, block_rank):
        columns = first + tl.arange(0, block_rank)
        is_column = columns < dt_rank
        part = load_vector(projected + columns, is_column)
        normalised = scaled(part, scale, dt_norm_weight + columns, is_column, dtype)
        tl.store(dt_low + row * dt_rank + columns, normalised, mask=is_column)
    states = tl.arange(0, block_states)
    is_state = states < d_state
    part = load_vector(projected + dt_rank + states, is_state)
    normalised = scaled_row(part, b_norm_weight, states, is_state, d_state, eps_bits, dtype)
    tl.store(B + row * d_state + states, normalised, mask=is_state)
    part = load_vector(projected + dt_rank + d_state + states, is_state)
    normalised = scaled_row(part, c_norm_weight, states, is_state, d_state, eps_bits, dtype)
    tl.store(C + row * d_state + states, normalised, mask=is_state)


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, delta: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalise the last axis of x + delta.

    Args:
        x: Contiguous. [..., hidden], T.
        weight: Contiguous. [hidden], T.
        eps: Added to the mean square.
        delta: Contiguous; nothing is added if omitted. [..., hidden], T.

    Returns:
        y: [..., hidden], T.
        total: x + delta, or ``x`` itself. [..., hidden], T.
    """
    y = x.new_empty(x.shape)
    total = x if delta is None else x.new_empty(x.shape)
    launch = plan_add_rms_norm(
        x.numel() // x.shape[-1], x.shape[-1], eps=eps, has_delta=delta is not None
    )
    add_rms_norm[launch.grid](
        x,
        x if delta is None else delta,
        weight,
        y,
        total,
        **launch.integers,
        **launch.blocks,
        num_warps=launch.num_warps,
    )
    return y, total


def rms_norms_of_dt_b_c(
    projected: Tensor, dt_weight: Tensor, b_weight: Tensor, c_weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise dt, B and C, which are adjacent columns of one tensor.

    Args:
        projected: Contiguous. [batch, seq_len, rank + 2 * d_state], T.
        dt_weight: [rank], T.
        b_weight: [d_state], T.
        c_weight: [d_state], T.
        eps: Added to each mean square.

    Returns:
        dt: [batch, seq_len, rank], T.
        B: [batch, seq_len, d_state], T.
        C: [batch, seq_len, d_state], T.
    """
    rank, d_state = dt_weight.shape[0], b_weight.shape[0]
    batch, seq_len, _ = projected.shape
    dt, B, C = (projected.new_empty((batch, seq_len, size)) for size in (rank, d_state, d_state))
    launch = plan_norm_dt_b_c(batch * seq_len, rank, d_state, eps=eps)
    norm_dt_b_c[launch.grid](
        projected,
        dt_weight,
        b_weight,
        c_weight,
        dt,
        B,
        C,
        **launch.integers,
        **launch.blocks,
        num_warps=launch.num_warps,
    )
    return dt, B, C
