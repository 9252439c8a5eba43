"""One call of an operator on a GPU: launches, workspaces, and kernels compiled for them.

Numbers and names only, so that the C++ host can mirror them and tests can compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Launch", "Variant", "Workspace"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel on one grid. Threads per program: 32 * ``num_warps``."""

    kernel: str
    grid: tuple[int, int, int]
    integers: dict[str, int]
    """The kernel's integers, in order, after its pointers; int32, but ``*_batch`` are int64."""
    blocks: dict[str, int]
    """The kernel's compile-time constants."""
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True, slots=True)
class Workspace:
    """One buffer between kernels; contiguous, never read before it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["T", "float32", "int32"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel as it is compiled ahead of time: for one dtype, layout and weight format."""

    name: str
    kernel: Any
    """The function that `triton.jit` made."""
    signature: dict[str, str]
    """Triton's type of every argument, in order; compile-time constants are `constexpr`."""
    blocks: dict[str, int]
    """The compile-time constants."""
    aligned: tuple[str, ...]
    """Arguments that the compiler assumes to be multiples of 16; the caller must ensure it."""
    num_warps: int
    num_stages: int = 1
