"""Launch arithmetic of norms and activations: grids, integers and blocks, without torch or Triton.

They read and write memory once, and that is their cost.
"""

from __future__ import annotations

import struct

from longllava_trt.plugins_trt.launch_plans.plan import Launch

__all__ = [
    "ELEMENTS",
    "NORM_RANK",
    "float_bits",
    "plan_add_rms_norm",
    "plan_norm_dt_b_c",
    "plan_quick_gelu",
    "plan_swiglu",
]

ELEMENTS = 1024
"""Outputs of one program of an activation: eight for each thread."""
NORM_RANK = 256
"""Elements of dt that a program normalises at once."""
_ELEMENTS_OF_THREAD = 16
_MOST_WARPS = 16


def plan_add_rms_norm(rows: int, hidden: int, *, eps: float, has_delta: bool) -> Launch:
    """Return the kernel that normalises rows, after a sum if there is one; one program a row."""
    block = _power_of_two(hidden)
    return Launch(
        "add_rms_norm",
        (rows, 1, 1),
        {"eps_bits": float_bits(eps), "hidden": hidden},
        {"has_delta": int(has_delta), "block": block},
        _warps(block),
    )


def plan_norm_dt_b_c(rows: int, rank: int, d_state: int, *, eps: float) -> Launch:
    """Return the kernel that normalises dt, B and C of each row; a program a row."""
    blocks = {"block_rank": NORM_RANK, "block_states": _power_of_two(d_state)}
    integers = {"eps_bits": float_bits(eps), "dt_rank": rank, "d_state": d_state}
    return Launch("norm_dt_b_c", (rows, 1, 1), integers, blocks, 1)


def plan_swiglu(rows: int, inner: int) -> Launch:
    """Return the kernel that makes ``inner`` activations of each row of 2 * ``inner``."""
    # tiles of all rows on the first axis: the others end at 65535
    grid = (rows * _ceil_div(inner, ELEMENTS), 1, 1)
    return Launch("swiglu", grid, {"inner": inner}, {"block": ELEMENTS}, 4)


def plan_quick_gelu(size: int) -> Launch:
    """Return the kernel for `size` elements that lie together."""
    return Launch(
        "quick_gelu", (_ceil_div(size, ELEMENTS), 1, 1), {"size": size}, {"block": ELEMENTS}, 4
    )


def _warps(block: int) -> int:
    return min(max(block // (32 * _ELEMENTS_OF_THREAD), 1), _MOST_WARPS)


def float_bits(value: float) -> int:
    """Return a float32 as the integer of the same bits: kernels take integers only."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits


def _ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
