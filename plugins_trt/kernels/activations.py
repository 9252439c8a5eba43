"""Activations on a GPU, in one pass each: SwiGLU of a fused product, and CLIP's quick GELU.

Float32 inside; each step of the model's own expression is rounded to T, as in PyTorch. The plain
versions are in `naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.elementwise import load_vector, silu
from longllava_trt.plugins_trt.launch_plans.elementwise import plan_quick_gelu, plan_swiglu

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["apply_quick_gelu", "apply_swiglu", "quick_gelu", "swiglu"]


@triton.jit  # type: ignore[untyped-decorator]
def swiglu(gate_up: tl.tensor, y: tl.tensor, inner: int, block: tl.constexpr) -> None:
    """Compute silu(gate) * up. Grid: [rows * ceil(inner / block)].

    Args:
        gate_up: A row's gate, then its up. [rows, 2 * inner], T.
        y: Written. [rows, inner], T.
        inner: Columns of y.
        block: Columns of a program, a power of two.
    """
    tiles = tl.cdiv(inner, block)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * block + tl.arange(0, block)
    is_column = columns < inner
    dtype: tl.constexpr = y.dtype.element_ty
    gate = load_vector(gate_up + row * 2 * inner + columns, is_column)
    up = load_vector(gate_up + row * 2 * inner + inner + columns, is_column)
    activated = silu(gate).to(dtype).to(tl.float32)
    tl.store(y + row * inner + columns, (activated * up).to(dtype), mask=is_column)


@triton.jit  # type: ignore[untyped-decorator]
def quick_gelu(x: tl.tensor, y: tl.tensor, size: int, block: tl.constexpr) -> None:
    """Compute x * sigmoid(1.702 x). Grid: [ceil(size / block)].

    Args:
        x: [size], T.
        y: Written; may be ``x``. [size], T.
        size: Elements.
        block: Elements of a program, a power of two.
    """
    here = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_element = here < size
    dtype: tl.constexpr = y.dtype.element_ty
    value = load_vector(x + here, is_element)
    slope = (1.702 * value).to(dtype).to(tl.float32)
    tail = tl.exp(-tl.abs(slope))
    gate = (tl.where(slope >= 0, 1.0, tail) / (1.0 + tail)).to(dtype).to(tl.float32)
    tl.store(y + here, (value * gate).to(dtype), mask=is_element)


def apply_swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up: from contiguous [..., 2 * inner], T, to [..., inner], T."""
    inner = gate_up.shape[-1] // 2
    y = gate_up.new_empty((*gate_up.shape[:-1], inner))
    launch = plan_swiglu(y.numel() // inner, inner)
    swiglu[launch.grid](gate_up, y, **launch.integers, **launch.blocks, num_warps=launch.num_warps)
    return y


def apply_quick_gelu(x: Tensor) -> Tensor:
    """Apply quick GELU in place to a contiguous tensor of any shape, T; return the tensor."""
    launch = plan_quick_gelu(x.numel())
    quick_gelu[launch.grid](x, x, **launch.integers, **launch.blocks, num_warps=launch.num_warps)
    return x
