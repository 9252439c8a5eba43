"""The reference's operators, made fast enough to train: same results, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from examples.needle.scan import scan_from_zero
from longllava_trt.reference.cache import AttentionState
from longllava_trt.reference.operators import ExpertWeights, ScanInputs, TorchOperators

__all__ = ["TrainingOperators"]


class TrainingOperators(TorchOperators):
    """Operators over whole sequences, from an empty cache; the state they return is the one they were given.

    Each mixture adds its balancing loss to `balance`: the number of experts times the sum, over experts, of the share
    of tokens that chose one times its mean probability. It is 1 where both are even.
    """

    def __init__(self) -> None:
        self.balance: list[Tensor] = []

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend without a mask."""
        return F.scaled_dot_product_attention(q, k, v)

    def causal_attention(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """Attend without holding the scores."""
        group = q.shape[1] // k.shape[1]
        key, value = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return F.scaled_dot_product_attention(q, key, value, is_causal=True), state

    def causal_conv(
        self, u: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add shifted rows up: for so short a kernel faster than a convolution."""
        rows = F.pad(u.transpose(1, 2), (0, 0, weight.shape[2] - 1, 0))
        length = u.shape[2]
        y = bias + sum(rows[:, k : k + length] * weight[:, 0, k] for k in range(weight.shape[2]))
        return F.silu(y).transpose(1, 2), conv_state

    def selective_scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Run the recurrence in Numba."""
        return scan_from_zero(inputs), inputs.state

    def sparse_moe(
        self, x: Tensor, router_logits: Tensor, experts: Sequence[ExpertWeights], *, top_k: int
    ) -> Tensor:
        """Note how evenly experts are used, then do as the reference does."""
        probabilities = router_logits.softmax(-1)
        chosen = probabilities.detach().topk(top_k, dim=-1).indices
        share = F.one_hot(chosen, len(experts)).float().sum(1).mean(0) / top_k
        self.balance.append(len(experts) * torch.dot(share, probabilities.mean(0)))
        return super().sparse_moe(x, router_logits, experts, top_k=top_k)
