"""SelectiveScan and CausalConvWithState in plain PyTorch: the kernels' plain versions, slow and obvious.

Same signatures, same dtypes, float32 inside. The mathematics is at `longllava_trt.plugins_trt.spec`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["naive_causal_conv", "naive_selective_scan"]


def naive_selective_scan(
    u: torch.Tensor,
    dt: torch.Tensor,
    A_log: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step through time. Arguments and results as for `selective_scan.selective_scan`."""
    raw = dt.float() + dt_bias.float()
    delta = raw.clamp(min=0) + raw.abs().neg().exp().log1p()
    A = -A_log.float().exp()
    y, h = u.new_empty(u.shape), state
    for t in range(u.shape[1]):
        delta_u = delta[:, t] * u[:, t].float()
        h = (delta[:, t, :, None] * A).exp() * h + delta_u[:, :, None] * B[:, t, None, :].float()
        out = (h * C[:, t, None, :].float()).sum(-1) + D.float() * u[:, t].float()
        gate = z[:, t].float()
        y[:, t] = (out * gate * gate.sigmoid()).to(y.dtype)
    return y, h


def naive_causal_conv(
    input: torch.Tensor,  # noqa: A002 - the operator's own name
    weight: torch.Tensor,
    bias: torch.Tensor,
    past_state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over shifted copies. Arguments and results as for `causal_conv.causal_conv`."""
    seq_len, d_conv = input.shape[2], weight.shape[2]
    extended = input.new_empty((*input.shape[:2], d_conv - 1 + seq_len))
    extended[:, :, : d_conv - 1] = past_state
    extended[:, :, d_conv - 1 :] = input
    total = bias.float()[:, None]
    for tap in range(d_conv):
        total = total + weight[:, 0, tap, None].float() * extended[:, :, tap : tap + seq_len]
    return (total * total.sigmoid()).to(input.dtype), extended[:, :, seq_len:].contiguous()
