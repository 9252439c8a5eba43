"""Scans and convolution as compiled ahead of time: types, constants, alignments.

A compiled kernel takes its pointers, then its integers, then two more pointers: Triton's scratch
memory for global data and for profiling. No kernel here uses those: pass null.
"""

from __future__ import annotations

from typing import Any

from longllava_trt.plugins_trt.kernels import (
    causal_conv,
    mamba_scan,
    rms_norm,
    selective_scan,
    selective_scan_chunks,
)
from longllava_trt.plugins_trt.launch_plans.mamba_scan import (
    ALIGNED,
    MambaScanShape,
    plan_mamba_scan,
)
from longllava_trt.plugins_trt.launch_plans.mixers import plan_causal_conv, plan_selective_scan
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Variant

__all__ = ["list_variants"]

_KERNELS: dict[str, Any] = {
    "scan_summaries": selective_scan_chunks.scan_summaries,
    "scan_prefix": selective_scan_chunks.scan_prefix,
    "scan_outputs": selective_scan_chunks.scan_outputs,
    "scan_step": selective_scan.scan_step,
    "conv_chunk": causal_conv.conv_chunk,
    "conv_step": causal_conv.conv_step,
    "mamba_step": mamba_scan.mamba_step,
    "norm_dt_b_c": rms_norm.norm_dt_b_c,
    "project_dt": mamba_scan.project_dt,
}
_FLOAT32 = {"state", "state_out", "chunk_states", "chunk_deltas"}
_INT64 = {"input_batch", "output_batch"}
_ROWS = {"input_row", "output_row"}
_OF_ALIGNED_SIZES = {"mamba_step", "norm_dt_b_c", "project_dt"}
"""Kernels that are compiled twice: for sizes that are multiples of 16, and for any."""
_SIZES = {"d_inner", "dt_rank", "d_state"}
_RANKS = (256, 255)
"""The published rank of dt, and one that takes the kernels for any size."""
_PUBLISHED = {"d_inner": 8192, "d_state": 16, "d_conv": 4}


def list_variants(
    dtype: str,
    *,
    d_state: int = _PUBLISHED["d_state"],
    d_conv: int = _PUBLISHED["d_conv"],
) -> list[Variant]:
    """Return every kernel that the three operators may launch for one T.

    Args:
        dtype: Triton's name of T.
        d_state: States of a channel.
        d_conv: Taps.
    """
    d_inner = _PUBLISHED["d_inner"]
    launches = []
    for seq_len in (1, 4096):
        launches += plan_selective_scan(1, seq_len, d_inner, d_state)[0]
        for last in (False, True):
            launches.append(plan_causal_conv(1, seq_len, d_inner, d_conv, channels_last=last))
        for dt_rank in _RANKS:
            shape = MambaScanShape(1, seq_len, d_inner, d_state, dt_rank)
            itemsize = 4 if dtype == "fp32" else 2
            launches += plan_mamba_scan(shape, eps=1e-6, itemsize=itemsize)[0]
    variants = (_variant(launch, dtype) for launch in launches)
    return list({variant.name: variant for variant in variants}.values())


def _variant(launch: Launch, dtype: str) -> Variant:
    kernel = _KERNELS[launch.kernel]
    known = dict.fromkeys(_FLOAT32, "*fp32") | dict.fromkeys(launch.blocks, "constexpr")
    known |= {name: "i64" if name in _INT64 else "i32" for name in launch.integers}
    signature = {name: known.get(name, f"*{dtype}") for name in kernel.arg_names}
    suffix, sizes = _alignment(launch)
    return Variant(
        name=f"{launch.kernel}_{dtype}{suffix}",
        kernel=kernel,
        signature=signature,
        blocks=launch.blocks,
        # a gate begins in the middle of a row
        aligned=tuple(n for n, t in signature.items() if (t[0] == "*" and n != "z") or n in sizes),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _alignment(launch: Launch) -> tuple[str, set[str]]:
    """Return the end of a variant's name, and its integers that are multiples of 16.

    With those a load takes 16 bytes. Rows that are tokens need it, rows that are channels cannot
    have it.
    """
    if launch.blocks.get("channels_last"):
        return "_channels_last", _ROWS
    sizes = _SIZES & launch.integers.keys()
    if launch.kernel not in _OF_ALIGNED_SIZES:
        return "", set()
    if all(launch.integers[name] % ALIGNED == 0 for name in sizes):
        return "", sizes
    return "_any_size", set()
