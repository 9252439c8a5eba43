"""Functions that the kernels compute element by element, in float32 and without overflow."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["advance", "load_rates", "load_vector", "silu", "softplus"]


@triton.jit  # type: ignore[untyped-decorator]
def load_vector(pointers: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load anything as float32, zeros where masked."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def softplus(x: tl.tensor) -> tl.tensor:
    """Return log(1 + exp(x)), keeping relative accuracy for very negative x."""
    tail = tl.exp(-tl.abs(x))
    # log(1 + tail) = 2 atanh(s), and s is at most a third; coefficients as in cpu/elementwise.py
    s = tail / (2.0 + tail)
    s2 = s * s
    series = (0.28157778363602565 * s2 + 0.2796515774560171) * s2 + 0.40024595230612836
    return tl.maximum(x, 0.0) + ((series * s2 + 0.6666632164138194) * s2 + 2.0) * s


@triton.jit  # type: ignore[untyped-decorator]
def silu(x: tl.tensor) -> tl.tensor:
    """Return x / (1 + exp(-x))."""
    tail = tl.exp(-tl.abs(x))
    return (tl.maximum(x, 0.0) + tl.minimum(x, 0.0) * tail) / (1.0 + tail)


@triton.jit  # type: ignore[untyped-decorator]
def load_rates(A_log: tl.tensor, offsets: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Return A / ln 2, so that a step's decay is a power of two."""
    return (
        tl.exp(tl.load(A_log + offsets, mask=mask, other=0.0).to(tl.float32)) * -1.4426950408889634
    )


@triton.jit  # type: ignore[untyped-decorator]
def advance(
    h: tl.tensor, rates: tl.tensor, delta: tl.tensor, delta_u: tl.tensor, b_t: tl.tensor
) -> tl.tensor:
    """Return the state [channel, state] one step later."""
    return tl.exp2(delta[:, None] * rates) * h + delta_u[:, None] * b_t[None, :]
