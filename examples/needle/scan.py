"""The selective scan with a gradient: a pair of Numba loops behind one autograd function.

PyTorch does what is pointwise (softplus, the skip, the gate) and transposes; the loops do the recurrence

    h[t] = exp(delta[t] * A) * h[t - 1] + x[t] * B[t],   y[t] = h[t] . C[t],   x = delta * u

from a state of zeros. The backward pass runs a channel's recurrence again instead of keeping every state.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from longllava_trt.plugins_trt.cpu.elementwise import exp
from longllava_trt.reference.operators import ScanInputs

__all__ = ["scan_from_zero"]

_f = np.float32
# reassociation: sums over states go abreast
_compile = numba.njit(fastmath={"contract", "reassoc"}, error_model="numpy", cache=True)


@_compile
def _forward(delta: Any, x: Any, A: Any, B: Any, C: Any, y: Any) -> None:
    """Fill y. delta, x and y are [batch, channel, step], A [channel, state], B and C [batch, step, state]."""
    h = np.empty(A.shape[1], _f)
    for b in range(x.shape[0]):
        for d in range(x.shape[1]):
            h[:] = 0
            for t in range(x.shape[2]):
                step, entry, total = delta[b, d, t], x[b, d, t], _f(0)
                for n in range(h.shape[0]):
                    h[n] = exp(step * A[d, n]) * h[n] + entry * B[b, t, n]
                    total += h[n] * C[b, t, n]
                y[b, d, t] = total


@_compile
def _backward(  # noqa: PLR0913, PLR0917 - five inputs, and a gradient of each
    delta: Any,
    x: Any,
    A: Any,
    B: Any,
    C: Any,
    grad_y: Any,
    grad_delta: Any,
    grad_x: Any,
    grad_A: Any,  # noqa: N803 - the state-space paper's names
    grad_B: Any,  # noqa: N803
    grad_C: Any,  # noqa: N803
) -> None:
    """Fill grad_delta and grad_x; add to the others."""
    seq_len, states = B.shape[1:]
    decay = np.empty((seq_len, states), _f)
    # h[t] is the state before step t
    h = np.zeros((seq_len + 1, states), _f)
    grad_h = np.empty(states, _f)
    for b in range(x.shape[0]):
        for d in range(x.shape[1]):
            for t in range(seq_len):
                step, entry = delta[b, d, t], x[b, d, t]
                for n in range(states):
                    decay[t, n] = exp(step * A[d, n])
                    h[t + 1, n] = decay[t, n] * h[t, n] + entry * B[b, t, n]
            grad_h[:] = 0
            for t in range(seq_len - 1, -1, -1):
                step, entry, up = delta[b, d, t], x[b, d, t], grad_y[b, d, t]
                to_delta, to_x = _f(0), _f(0)
                for n in range(states):
                    grad_h[n] += up * C[b, t, n]
                    grad_C[b, t, n] += up * h[t + 1, n]
                    grad_B[b, t, n] += grad_h[n] * entry
                    to_x += grad_h[n] * B[b, t, n]
                    grad_h[n] *= decay[t, n]
                    through = grad_h[n] * h[t, n]
                    to_delta += through * A[d, n]
                    grad_A[d, n] += through * step
                grad_delta[b, d, t], grad_x[b, d, t] = to_delta, to_x


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        ctx.save_for_backward(*inputs)
        y = torch.empty_like(inputs[1])
        delta, x, A, B, C = (tensor.numpy() for tensor in inputs)
        _forward(delta, x, A, B, C, y.numpy())
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        grads = tuple(torch.zeros_like(tensor) for tensor in inputs)
        (grad_y,) = grad_outputs
        _backward(*(t.numpy() for t in (*inputs, grad_y.contiguous(), *grads)))
        return grads


def scan_from_zero(inputs: ScanInputs) -> Tensor:
    """Run the reference's `selective_scan` from a state of zeros, differentiably and fast.

    Args:
        inputs: Float32. ``state`` is not read.

    Returns:
        y [batch, seq_len, d_inner].
    """
    u, dt, A_log, B, C, D, z, dt_bias, _ = inputs
    delta = F.softplus(dt + dt_bias)
    x = delta * u
    y: Tensor = _Recurrence.apply(  # type: ignore[no-untyped-call]
        delta.transpose(1, 2), x.transpose(1, 2), -torch.exp(A_log), B, C
    )
    return (y.transpose(1, 2) + D * u) * F.silu(z)
