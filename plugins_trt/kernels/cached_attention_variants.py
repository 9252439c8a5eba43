"""CachedAttention as it is compiled ahead of time: types, constants, alignments.

Apart from `variants.list_variants`, since tiles depend on the architecture; names do not. A compiled
kernel takes its pointers, then its integers.
"""

from __future__ import annotations

from typing import Literal

from longllava_trt.plugins_trt.kernels.cached_attention import KERNELS
from longllava_trt.plugins_trt.launch_plans.cached_attention import (
    AttentionShape,
    plan_cached_attention,
    tiles_of,
)
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Variant

__all__ = ["list_plugin_variants", "list_variants"]

_FLOAT32 = {"cos", "sin", "part_outputs", "part_logs"}
_INT64 = {"q_batch", "k_batch", "v_batch"}
_ROWS = {"q_token", "k_token", "v_token"}
_ROW_COUNTS = (1, 32, 64)


def list_variants(
    dtype: Literal["fp32", "fp16", "bf16"],
    *,
    arch: int,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    rotary: bool = False,
) -> list[Variant]:
    """Return every kernel that the operator may launch for one T, for up to 16 sequences.

    Args:
        dtype: Triton's name of T.
        arch: Compute capability: 80 is 8.0.
        heads: Heads of the queries.
        kv_heads: Heads of keys and values.
        head_dim: Elements of a head.
        rotary: Whether queries and new keys are rotated.
    """
    found: dict[str, Variant] = {}
    tiles = tiles_of(arch, itemsize=4 if dtype == "fp32" else 2)
    lengths = {max(rows * kv_heads // heads, 1) for rows in _ROW_COUNTS}
    for seq_len in (*sorted(lengths), 4096):
        shape = AttentionShape(1, seq_len, heads, kv_heads, head_dim, 4096)
        for launch in plan_cached_attention(shape, tiles=tiles, rotary=rotary)[0]:
            variant = _variant(launch, dtype)
            found[variant.name] = variant
    return list(found.values())


def list_plugin_variants(
    dtype: Literal["fp32", "fp16", "bf16"], *, arch: int, head_dim: int, group: int
) -> list[Variant]:
    """Return what the plugin may launch: TensorRT appends to the caches, and rotates nothing.

    Args:
        dtype: As for `list_variants`.
        arch: Likewise.
        head_dim: Likewise.
        group: Heads that share a key/value head.
    """
    listed = list_variants(dtype, arch=arch, heads=group, kv_heads=1, head_dim=head_dim)
    return [variant for variant in listed if variant.kernel is not KERNELS["append_cache"]]


def _variant(launch: Launch, dtype: str) -> Variant:
    kernel = KERNELS[launch.kernel]
    known = dict.fromkeys(_FLOAT32, "*fp32") | dict.fromkeys(launch.blocks, "constexpr")
    known |= {name: "i64" if name in _INT64 else "i32" for name in launch.integers}
    known["past_len"] = "*i32"
    signature = {name: known.get(name, f"*{dtype}") for name in kernel.arg_names}
    # vectors are loaded 16 bytes at a time
    aligned = tuple(n for n, t in signature.items() if t.startswith("*") or n in _INT64 | _ROWS)
    name = f"{launch.kernel}_{dtype}_d{launch.blocks['head_dim']}"
    if "group" in launch.blocks:
        name += f"_g{launch.blocks['group']}"
    name += "_rotary" * launch.blocks.get("rotary", 0)
    if "block_rows" in launch.blocks:
        name += f"_rows{launch.blocks['block_rows']}"
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        blocks=launch.blocks,
        aligned=aligned,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
