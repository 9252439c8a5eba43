"""SelectiveScan on a GPU: one kernel for a decode step, and the call of those for many tokens.

The mathematics is in `longllava_trt.plugins_trt.spec.SELECTIVE_SCAN`, the kernels for many tokens in
`selective_scan_chunks.py`, grids and workspaces in `launch_plans/mixers.py`, the plain version in
`naive.py`.
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
from longllava_trt.plugins_trt.kernels.selective_scan_chunks import (
    scan_outputs,
    scan_prefix,
    scan_summaries,
)
from longllava_trt.plugins_trt.launch_plans.mixers import plan_selective_scan

if TYPE_CHECKING:
    import torch

__all__ = ["scan_step", "selective_scan"]


@triton.jit  # type: ignore[untyped-decorator]
def scan_step(
    u: tl.tensor,
    dt: tl.tensor,
    A_log: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    z: tl.tensor,
    dt_bias: tl.tensor,
    state: tl.tensor,
    y: tl.tensor,
    state_out: tl.tensor,
    seq_len: int,
    d_inner: int,
    z_row: int,
    d_state: tl.constexpr,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
) -> None:
    """Scan a token or two. Grid: [channel blocks, batch].

    Right for any ``seq_len``, quick for small ones: nothing is loaded ahead. Arguments as for
    `scan_outputs`, but ``state_out`` may be ``state``.
    """
    row = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    states = tl.arange(0, block_states)
    is_channel, is_state = channels < d_inner, states < d_state
    is_element = is_channel[:, None] & is_state[None, :]
    elements = channels[:, None] * d_state + states[None, :]
    rates = load_rates(A_log, elements, is_element)
    bias = load_vector(dt_bias + channels, is_channel)
    skip = load_vector(D + channels, is_channel)
    h = load_vector(state + row * d_inner * d_state + elements, is_element)
    for step in range(seq_len):
        token = row * seq_len + step
        here = token * d_inner + channels
        u_t = load_vector(u + here, is_channel)
        delta = softplus(load_vector(dt + here, is_channel) + bias)
        b_t = load_vector(B + token * d_state + states, is_state)
        c_t = load_vector(C + token * d_state + states, is_state)
        h = advance(h, rates, delta, delta * u_t, b_t)
        out = tl.sum(h * c_t[None, :], axis=1) + skip * u_t
        out *= silu(load_vector(z + token * z_row + channels, is_channel))
        tl.store(y + here, out.to(y.dtype.element_ty), mask=is_channel)
    tl.store(state_out + row * d_inner * d_state + elements, h, mask=is_element)


def selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    A_log: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    *,
    state_out: torch.Tensor | None = None,
    chunks: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the operator on tensors of one device, as C++ does; all but ``z`` contiguous.

    Args:
        u: [batch, seq_len, d_inner], T.
        dt: [batch, seq_len, d_inner], T.
        A_log: [d_inner, d_state], T.
        B: [batch, seq_len, d_state], T.
        C: [batch, seq_len, d_state], T.
        D: [d_inner], T.
        z: Contiguous, or the second half of [batch, seq_len, 2 * d_inner]. [batch, seq_len,
            d_inner], T.
        dt_bias: [d_inner], T.
        state: Never written. [batch, d_inner, d_state], float32.
        state_out: Memory for the result; allocated if omitted; not ``state``.
        chunks: As for `launch_plans.mixers.scan_chunks`.

    Returns:
        y: [batch, seq_len, d_inner], T.
        state_out: [batch, d_inner, d_state], float32.
    """
    batch, seq_len, d_inner = u.shape
    launches, spaces = plan_selective_scan(
        batch, seq_len, d_inner, A_log.shape[1], z_row=z.stride(1), chunks=chunks
    )
    y = u.new_empty(u.shape)
    if state_out is None:
        state_out = state.new_empty(state.shape)
    chunk_states, chunk_deltas = (
        [state.new_empty(space.shape) for space in spaces] if spaces else (state, state)
    )
    inputs = (u, dt, A_log, B, C, D, z, dt_bias, state)
    calls: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
        "scan_summaries": (scan_summaries, (u, dt, A_log, B, dt_bias, chunk_states, chunk_deltas)),
        "scan_prefix": (scan_prefix, (A_log, state, chunk_states, chunk_deltas)),
        "scan_outputs": (scan_outputs, (*inputs, chunk_states, y, state_out)),
        "scan_step": (scan_step, (*inputs, y, state_out)),
    }
    for launch in launches:
        kernel, tensors = calls[launch.kernel]
        kernel[launch.grid](
            *tensors, **launch.integers, **launch.blocks, num_warps=launch.num_warps
        )
    return y, state_out
