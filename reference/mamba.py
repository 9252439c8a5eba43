"""The Mamba-1 mixer with RMSNorm on dt, B and C (spec 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from longllava_trt.models.spec import MambaSpec
from longllava_trt.reference.cache import MambaState
from longllava_trt.reference.norms import RMSNorm
from longllava_trt.reference.operators import Operators, ScanInputs

__all__ = ["MambaMixer"]


class MambaMixer(nn.Module):
    """Gated selective state-space mixer.

    Args:
        spec: The mixer.
        hidden_size: Width of the residual stream.
        eps: Epsilon of its norms.
    """

    def __init__(self, spec: MambaSpec, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        inner = spec.d_inner
        self.sizes = (spec.dt_rank, spec.d_state, spec.d_state)
        self.in_proj = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, spec.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(spec.dt_rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, spec.d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        self.dt_norm = RMSNorm(self.sizes[0], eps=eps)
        self.B_norm = RMSNorm(self.sizes[1], eps=eps)
        self.C_norm = RMSNorm(self.sizes[2], eps=eps)

    def forward(self, x: Tensor, state: MambaState, ops: Operators) -> tuple[Tensor, MambaState]:
        """Mix x [batch, seq_len, hidden_size], T, over time, starting from ``state``.

        Returns:
            Output like x, and the next state.
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)
        conv_bias = self.conv1d.bias
        assert conv_bias is not None, "Bug: the convolution is built with a bias"
        u, conv_state = ops.causal_conv(
            u.transpose(1, 2), self.conv1d.weight, conv_bias, state.conv_state
        )
        u = u.transpose(1, 2)
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        # the bias of dt_proj belongs to the scan, which adds it in float32
        dt = F.linear(self.dt_norm(dt, ops), self.dt_proj.weight)
        y, recurrent_state = ops.selective_scan(
            ScanInputs(
                u=u,
                dt=dt,
                A_log=self.A_log,
                B=self.B_norm(B, ops),
                C=self.C_norm(C, ops),
                D=self.D,
                z=z,
                dt_bias=self.dt_proj.bias,
                state=state.recurrent_state,
            )
        )
        kept = recurrent_state.to(state.recurrent_state.dtype)
        return self.out_proj(y), MambaState(conv_state, kept)
