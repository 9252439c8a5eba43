"""The operators of the model in plain PyTorch, and the protocol that export implements too.

The model's modules call operators. `TorchOperators` computes them for the reference; export's
counterpart emits one ONNX node for the same call. So the model's structure is written only once.
Precision follows the kernel path of the original (spec 2.4): float32 inside, the result cast to `T`
once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from longllava_trt.models.spec import RotarySpec
from longllava_trt.reference.cache import AttentionState
from longllava_trt.reference.rotary import rotary_tables, rotate_halves

__all__ = ["ExpertWeights", "Operators", "ScanInputs", "TorchOperators"]


class ExpertWeights(NamedTuple):
    """The three matrices of one SwiGLU expert, all without bias."""

    gate: Tensor
    """[intermediate_size, hidden_size], T."""
    up: Tensor
    """[intermediate_size, hidden_size], T."""
    down: Tensor
    """[hidden_size, intermediate_size], T."""


class ScanInputs(NamedTuple):
    """Inputs of a selective scan, in the order of the ONNX node."""

    u: Tensor
    """Input after the convolution and SiLU. [B, L, D], T."""
    dt: Tensor
    """Step size before bias and softplus. [B, L, D], T."""
    A_log: Tensor
    """Logarithm of the negated state decay. [D, N], T."""
    B: Tensor
    """Input matrix, shared by all channels. [B, L, N], T."""
    C: Tensor
    """Output matrix, shared by all channels. [B, L, N], T."""
    D: Tensor
    """Skip weight. [D], T."""
    z: Tensor
    """Gate before SiLU. [B, L, D], T."""
    dt_bias: Tensor
    """[D], T."""
    state: Tensor
    """State before the first token. [B, D, N], float32."""


class Operators(Protocol):
    """Implementation of the model's operators."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise x [..., size], T, by the last axis's root mean square; weight [size], T."""
        ...

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend without a mask. Inputs and result [B, H, L, head_dim], T."""
        ...

    def rotate(
        self, q: Tensor, k: Tensor, state: AttentionState, rotary: RotarySpec
    ) -> tuple[Tensor, Tensor]:
        """Rotate q [B, H, L, head_dim] and k [B, G, L, head_dim], T, to the positions after the cache.

        Returns:
            Tensors like q and k.
        """
        ...

    def causal_attention(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """Append k and v [B, G, L, head_dim] to the cache; attend from q [B, H, L, head_dim]; T.

        Returns:
            Output like q, and the longer cache.
        """
        ...

    def causal_conv(
        self, u: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Convolve each channel of u [B, D, L], T, over time, then apply SiLU.

        Args:
            u: Input.
            weight: [D, 1, d_conv], T.
            bias: [D], T.
            conv_state: [B, D, d_conv - 1], T.

        Returns:
            Output like u, and the next conv_state.
        """
        ...

    def selective_scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Run the recurrence.

        Returns:
            y [B, L, D], T, and the state after the last token [B, D, N], float32.
        """
        ...

    def sparse_moe(
        self, x: Tensor, router_logits: Tensor, experts: Sequence[ExpertWeights], *, top_k: int
    ) -> Tensor:
        """Send each row of x [num_tokens, hidden_size], T, through its top_k experts.

        Args:
            x: Input.
            router_logits: [num_tokens, num_experts], T.
            experts: Weights of each expert.
            top_k: Experts for each row.

        Returns:
            Output like x.
        """
        ...


class TorchOperators:
    """The operators in plain PyTorch."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise in float32, cast to T, then scale in T (spec 2.1)."""
        x32 = x.float()
        normalised = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
        return weight * normalised.to(x.dtype)

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scores in T, softmax in float32, weights in T."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.float().softmax(-1).to(q.dtype) @ v

    def rotate(
        self, q: Tensor, k: Tensor, state: AttentionState, rotary: RotarySpec
    ) -> tuple[Tensor, Tensor]:
        """Angles in float32; their cosines and sines, and the products, in T."""
        past_len = state.key.shape[2]
        positions = torch.arange(past_len, past_len + q.shape[2], device=q.device)
        tables = rotary_tables(positions, rotary, q.shape[-1], q.dtype)
        return rotate_halves(q, *tables), rotate_halves(k, *tables)

    def causal_attention(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """Grouped-query attention over a cache that grows (spec 2.3)."""
        key = torch.cat([state.key, k], dim=2)
        value = torch.cat([state.value, v], dim=2)
        past_len, length = state.key.shape[2], q.shape[2]
        group = q.shape[1] // k.shape[1]
        scores = q @ key.repeat_interleave(group, dim=1).transpose(-1, -2)
        scores = scores / math.sqrt(q.shape[-1])
        # row i sees the past and the columns up to its own
        hidden = torch.ones(length, past_len + length, dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(hidden.triu(past_len + 1), float("-inf"))
        weights = scores.float().softmax(-1).to(q.dtype)
        y = weights @ value.repeat_interleave(group, dim=1)
        return y, AttentionState(key, value)

    def causal_conv(
        self, u: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Depthwise convolution with the carried columns on its left; bias and SiLU in float32."""
        columns = torch.cat([conv_state, u], dim=2)
        y = F.conv1d(columns.float(), weight.float(), bias.float(), groups=u.shape[1])
        return F.silu(y).to(u.dtype), columns[:, :, -conv_state.shape[2] :]

    def selective_scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Step through time, one token at a time (spec 2.4, steps 4 to 6)."""
        u, dt, A_log, B, C, D, z, dt_bias, state = (t.float() for t in inputs)
        delta = F.softplus(dt + dt_bias)
        A = -torch.exp(A_log)
        ys = []
        for t in range(u.shape[1]):
            decay = torch.exp(delta[:, t, :, None] * A)  # [B, D, N]
            state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
            ys.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
        y = torch.stack(ys, dim=1) * F.silu(z)
        return y.to(inputs.u.dtype), state

    def sparse_moe(
        self, x: Tensor, router_logits: Tensor, experts: Sequence[ExpertWeights], *, top_k: int
    ) -> Tensor:
        """Softmax over all experts, top-k, not renormalised; in ascending order (spec 2.5)."""
        weights, chosen = router_logits.float().softmax(-1).topk(top_k, dim=-1)
        weights = weights.to(x.dtype)
        y = torch.zeros_like(x)
        for e, (gate, up, down) in enumerate(experts):
            token, slot = torch.where(chosen == e)
            rows = x[token]
            rows = F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)
            y[token] += rows * weights[token, slot, None]
        return y
