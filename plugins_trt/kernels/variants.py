"""SelectiveScan and CausalConvWithState as compiled ahead of time: types, constants, alignments.

A compiled kernel takes its pointers, then its integers, then two more pointers: Triton's scratch
memory for global data and for profiling. No kernel here uses those: pass null.
"""

from __future__ import annotations

from typing import Any

from longllava_trt.plugins_trt.kernels import causal_conv, selective_scan
from longllava_trt.plugins_trt.launch_plans.mixers import plan_causal_conv, plan_selective_scan
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Variant

__all__ = ["list_variants"]

_KERNELS: dict[str, Any] = {
    "scan_summaries": selective_scan.scan_summaries,
    "scan_prefix": selective_scan.scan_prefix,
    "scan_outputs": selective_scan.scan_outputs,
    "scan_step": selective_scan.scan_step,
    "conv_chunk": causal_conv.conv_chunk,
    "conv_step": causal_conv.conv_step,
}
_FLOAT32 = {"state", "state_out", "chunk_states", "chunk_deltas"}
_INT64 = {"input_batch", "output_batch"}
_ROWS = {"input_row", "output_row"}
_PUBLISHED = {"d_inner": 8192, "d_state": 16, "d_conv": 4}


def list_variants(
    dtype: str,
    *,
    d_state: int = _PUBLISHED["d_state"],
    d_conv: int = _PUBLISHED["d_conv"],
) -> list[Variant]:
    """Return every kernel that the two operators may launch for one T.

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
    return [_variant(launch, dtype) for launch in launches]


def _variant(launch: Launch, dtype: str) -> Variant:
    kernel = _KERNELS[launch.kernel]
    known = dict.fromkeys(_FLOAT32, "*fp32") | dict.fromkeys(launch.blocks, "constexpr")
    known |= {name: "i64" if name in _INT64 else "i32" for name in launch.integers}
    signature = {name: known.get(name, f"*{dtype}") for name in kernel.arg_names}
    last = launch.blocks.get("channels_last", 0)
    # then a load takes 16 bytes; rows that are tokens need it, rows that are channels cannot have
    # it
    rows = _ROWS if last else set()
    aligned = tuple(n for n, t in signature.items() if t.startswith("*") or n in rows)
    name = f"{launch.kernel}_{dtype}" + "_channels_last" * last
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        blocks=launch.blocks,
        aligned=aligned,
        num_warps=launch.num_warps,
    )
