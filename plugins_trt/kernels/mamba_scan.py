"""MambaScan on a GPU: a decode step in one kernel; many tokens by way of norms, a product and a scan.

The mathematics is in `longllava_trt.plugins_trt.spec.MAMBA_SCAN`, grids and workspaces in
`launch_plans/mamba_scan.py`, the plain version in `naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.elementwise import (
    advance,
    load_rates,
    load_vector,
    silu,
    softplus,
)
from longllava_trt.plugins_trt.kernels.rms_norm import (
    inverse_root_of_row,
    norm_dt_b_c,
    scaled,
    scaled_row,
)
from longllava_trt.plugins_trt.kernels.selective_scan_chunks import (
    scan_outputs,
    scan_prefix,
    scan_summaries,
)
from longllava_trt.plugins_trt.launch_plans.mamba_scan import MambaScanShape, plan_mamba_scan

if TYPE_CHECKING:
    import torch

__all__ = ["mamba_scan", "mamba_step", "project_dt"]


@triton.jit  # type: ignore[untyped-decorator]
def load_block(
    weight: tl.tensor, rows: tl.tensor, columns: tl.tensor, is_row: tl.tensor, size: int
) -> tl.tensor:
    """Load columns [groups, columns] of some rows of a matrix with ``size`` columns, as float32."""
    is_real = is_row[:, None, None] & (columns < size)[None, :, :]
    return load_vector(weight + rows[:, None, None] * size + columns[None, :, :], is_real)


@triton.jit  # type: ignore[untyped-decorator]
def scaled_block(
    row: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    columns: tl.tensor,
    size: int,
    dtype: tl.constexpr,
) -> tl.tensor:
    """Return some columns of a row of ``size``, normalised, scaled, cast to T and back to float32."""
    is_column = columns < size
    part = load_vector(row + columns, is_column)
    return scaled(part, scale, weight + columns, is_column, dtype).to(tl.float32)


@triton.jit(do_not_specialize=["eps_bits"])  # type: ignore[untyped-decorator]
def mamba_step(
    u: tl.tensor,
    projected: tl.tensor,
    dt_norm_weight: tl.tensor,
    b_norm_weight: tl.tensor,
    c_norm_weight: tl.tensor,
    dt_proj_weight: tl.tensor,
    dt_bias: tl.tensor,
    A_log: tl.tensor,
    D: tl.tensor,
    xz: tl.tensor,
    state: tl.tensor,
    y: tl.tensor,
    state_out: tl.tensor,
    seq_len: int,
    d_inner: int,
    dt_rank: int,
    eps_bits: int,
    d_state: tl.constexpr,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
    block_rank: tl.constexpr,
) -> None:
    """Normalise, project and scan a token or two. Grid: [channel blocks, batch].

    Every program normalises dt, B and C anew: they are short, and each lies in the cache after the
    first. Right for any ``seq_len`` and ``dt_rank``, quick for few tokens.

    Args:
        u: [batch, seq_len, d_inner], T.
        projected: dt, then B, then C. [batch, seq_len, dt_rank + 2 * d_state], T.
        dt_norm_weight: [dt_rank], T.
        b_norm_weight: [d_state], T.
        c_norm_weight: [d_state], T.
        dt_proj_weight: [d_inner, dt_rank], T.
        dt_bias: [d_inner], T.
        A_log: [d_inner, d_state], T.
        D: [d_inner], T.
        xz: The gate is its second half. [batch, seq_len, 2 * d_inner], T.
        state: State before the first token. [batch, d_inner, d_state], float32.
        y: Written. [batch, seq_len, d_inner], T.
        state_out: Written; may be ``state``. [batch, d_inner, d_state], float32.
        seq_len: Tokens.
        d_inner: Channels.
        dt_rank: Columns of dt before its projection.
        eps_bits: Added to each mean square; float32 as an integer of the same bits.
        d_state: States of a channel.
        block_channels: Channels of a program, a power of two.
        block_states: ``d_state`` rounded up to a power of two.
        block_rank: Columns of dt that are read at once, a power of two.
    """
    row = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    states = tl.arange(0, block_states)
    # in groups, so that a thread's part of a sum over them is one of a state too
    group: tl.constexpr = block_rank // 16
    ranks = tl.arange(0, 16)[:, None] * group + tl.arange(0, group)[None, :]
    is_channel, is_state = channels < d_inner, states < d_state
    is_element = is_channel[:, None] & is_state[None, :]
    elements = channels[:, None] * d_state + states[None, :]
    dtype: tl.constexpr = y.dtype.element_ty
    rates = load_rates(A_log, elements, is_element)
    bias = load_vector(dt_bias + channels, is_channel)
    skip = load_vector(D + channels, is_channel)
    h = load_vector(state + row * d_inner * d_state + elements, is_element)
    for step in range(seq_len):
        token = row * seq_len + step
        here = projected + token * (dt_rank + 2 * d_state)
        # before the norm, so that both are on their way
        taken = load_block(dt_proj_weight, channels, ranks, is_channel, dt_rank)
        scale = inverse_root_of_row(here, dt_rank, eps_bits, block_rank)
        low = scaled_block(here, scale, dt_norm_weight, ranks, dt_rank, dtype)
        dt = tl.sum(tl.sum(taken * low[None, :, :], axis=2), axis=1)
        for first in range(block_rank, dt_rank, block_rank):
            columns = first + ranks
            low = scaled_block(here, scale, dt_norm_weight, columns, dt_rank, dtype)
            taken = load_block(dt_proj_weight, channels, columns, is_channel, dt_rank)
            dt += tl.sum(tl.sum(taken * low[None, :, :], axis=2), axis=1)
        part = load_vector(here + dt_rank + states, is_state)
        b_t = scaled_row(part, b_norm_weight, states, is_state, d_state, eps_bits, dtype)
        part = load_vector(here + dt_rank + d_state + states, is_state)
        c_t = scaled_row(part, c_norm_weight, states, is_state, d_state, eps_bits, dtype)
        u_t = load_vector(u + token * d_inner + channels, is_channel)
        delta = softplus(dt.to(dtype).to(tl.float32) + bias)
        h = advance(h, rates, delta, delta * u_t, b_t.to(tl.float32))
        out = tl.sum(h * c_t.to(tl.float32)[None, :], axis=1) + skip * u_t
        out *= silu(load_vector(xz + (2 * token + 1) * d_inner + channels, is_channel))
        tl.store(y + token * d_inner + channels, out.to(dtype), mask=is_channel)
    tl.store(state_out + row * d_inner * d_state + elements, h, mask=is_element)


@triton.jit  # type: ignore[untyped-decorator]
def project_dt(
    dt_low: tl.tensor,
    dt_proj_weight: tl.tensor,
    dt: tl.tensor,
    rows: int,
    d_inner: int,
    dt_rank: int,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Compute dt_low dt_proj_weight'. Grid: [row blocks, column blocks].

    Args:
        dt_low: [rows, dt_rank], T.
        dt_proj_weight: [d_inner, dt_rank], T.
        dt: Written; summed in float32. [rows, d_inner], T.
        rows: Tokens of all sequences.
        d_inner: Channels.
        dt_rank: Length of the sums.
        block_rows: Rows of a program, a power of two.
        block_columns: Channels of a program, a power of two.
        block_depth: Elements of one step along the sums, a power of two.
    """
    tokens = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channels = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    is_token, is_channel = tokens < rows, channels < d_inner
    left = dt_low + tokens.to(tl.int64)[:, None] * dt_rank
    right = dt_proj_weight + channels[:, None] * dt_rank
    total = tl.zeros([block_rows, block_columns], tl.float32)
    for first in range(0, dt_rank, block_depth):
        depth = first + tl.arange(0, block_depth)
        is_deep = (depth < dt_rank)[None, :]
        x = tl.load(left + depth[None, :], mask=is_token[:, None] & is_deep, other=0.0)
        w = tl.load(right + depth[None, :], mask=is_channel[:, None] & is_deep, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    targets = dt + tokens.to(tl.int64)[:, None] * d_inner + channels[None, :]
    is_real = is_token[:, None] & is_channel[None, :]
    tl.store(targets, total.to(dt.dtype.element_ty), mask=is_real)


_KERNELS: dict[str, Any] = {
    "mamba_step": mamba_step,
    "norm_dt_b_c": norm_dt_b_c,
    "project_dt": project_dt,
    "scan_summaries": scan_summaries,
    "scan_prefix": scan_prefix,
    "scan_outputs": scan_outputs,
}


def mamba_scan(
    u: torch.Tensor,
    projected: torch.Tensor,
    dt_norm_weight: torch.Tensor,
    b_norm_weight: torch.Tensor,
    c_norm_weight: torch.Tensor,
    dt_proj_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A_log: torch.Tensor,
    D: torch.Tensor,
    xz: torch.Tensor,
    state: torch.Tensor,
    *,
    eps: float,
    state_out: torch.Tensor | None = None,
    chunks: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the operator on contiguous tensors of one device, as C++ does.

    Args:
        u: [batch, seq_len, d_inner], T.
        projected: dt, then B, then C. [batch, seq_len, dt_rank + 2 * d_state], T.
        dt_norm_weight: [dt_rank], T.
        b_norm_weight: [d_state], T.
        c_norm_weight: [d_state], T.
        dt_proj_weight: [d_inner, dt_rank], T.
        dt_bias: [d_inner], T.
        A_log: [d_inner, d_state], T.
        D: [d_inner], T.
        xz: The gate is its second half. [batch, seq_len, 2 * d_inner], T.
        state: Never written, unless it is ``state_out``. [batch, d_inner, d_state], float32.
        eps: Added to each mean square.
        state_out: Memory for the result; allocated if omitted; ``state`` for a step alone.
        chunks: As for `launch_plans.mixers.scan_chunks`.

    Returns:
        y: [batch, seq_len, d_inner], T.
        state_out: [batch, d_inner, d_state], float32.
    """
    batch, seq_len, d_inner = u.shape
    shape = MambaScanShape(batch, seq_len, d_inner, A_log.shape[1], dt_proj_weight.shape[1])
    launches, spaces = plan_mamba_scan(shape, eps=eps, itemsize=u.element_size(), chunks=chunks)
    y = u.new_empty(u.shape)
    state_out = state.new_empty(state.shape) if state_out is None else state_out
    tensors = {
        "u": u,
        "projected": projected,
        "dt_norm_weight": dt_norm_weight,
        "b_norm_weight": b_norm_weight,
        "c_norm_weight": c_norm_weight,
        "dt_proj_weight": dt_proj_weight,
        "dt_bias": dt_bias,
        "A_log": A_log,
        "D": D,
        "xz": xz,
        "z": xz[..., shape.d_inner :],
        "state": state,
        "y": y,
        "state_out": state_out,
        # not read where there is one chunk
        "chunk_states": state,
    }
    for space in spaces:
        like = u if space.dtype == "T" else state
        tensors[space.name] = like.new_empty(space.shape)
    for launch in launches:
        kernel = _KERNELS[launch.kernel]
        kernel[launch.grid](
            **{name: tensors[name] for name in kernel.arg_names if name in tensors},
            **launch.integers,
            **launch.blocks,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
    return y, state_out
