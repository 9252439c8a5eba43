"""Scan, convolution, norms and activations in plain PyTorch, slow and obvious.

Signatures, shapes and dtypes are those of the kernels, T the dtype of the model; float32 inside.
The mathematics is in `longllava_trt.plugins_trt.spec`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "naive_causal_conv",
    "naive_mamba_scan",
    "naive_quick_gelu",
    "naive_rms_norm",
    "naive_rms_norms_of_dt_b_c",
    "naive_selective_scan",
    "naive_swiglu",
]


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


def naive_mamba_scan(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise, project, scan. Arguments and results as for `mamba_scan.mamba_scan`."""
    dt, B, C = naive_rms_norms_of_dt_b_c(
        projected, dt_norm_weight, b_norm_weight, c_norm_weight, eps=eps
    )
    dt = (dt.float() @ dt_proj_weight.float().mT).to(u.dtype)
    z = xz.chunk(2, dim=-1)[1]
    return naive_selective_scan(u, dt, A_log, B, C, D, z, dt_bias, state)


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


def naive_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, eps: float, delta: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add, normalise, scale. Arguments and results as for `rms_norm.rms_norm`."""
    total = x if delta is None else x + delta
    mean_square = total.float().pow(2).mean(-1, keepdim=True)
    return weight * (total.float() * (mean_square + eps).rsqrt()).to(x.dtype), total


def naive_rms_norms_of_dt_b_c(
    projected: torch.Tensor,
    dt_weight: torch.Tensor,
    b_weight: torch.Tensor,
    c_weight: torch.Tensor,
    *,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Split, then normalise each. As for `rms_norm.rms_norms_of_dt_b_c`."""
    weights = (dt_weight, b_weight, c_weight)
    parts = projected.split([weight.shape[0] for weight in weights], dim=-1)
    return tuple(
        naive_rms_norm(part, weight, eps=eps)[0]
        for part, weight in zip(parts, weights, strict=True)
    )


def naive_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Split and multiply. As for `activations.apply_swiglu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.float()
    return (wide * wide.sigmoid()).to(gate.dtype) * up


def naive_quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Multiply by a sigmoid. As for `activations.apply_quick_gelu`."""
    return x * (1.702 * x).sigmoid()
