"""CachedAttention on PyTorch tensors: appends to the caches, then attends to all their positions.

Query t of a sequence sees positions 0 to past_len + t. Scores, softmax and sums are float32;
softmax's powers are cast to T before they are multiplied with the values, and y at the end. Queries
and new keys may be rotated first, in float32, then cast to T.

Nothing waits for the device: the lengths stay there, and launches depend only on shapes
(`launch_plans.cached_attention`), so a call can be captured in a CUDA graph and replayed while the
sequences grow. The plain version is in `cached_attention_naive`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.kernels.cached_attention_append import append_cache
from longllava_trt.plugins_trt.kernels.cached_attention_chunk import attention_chunk
from longllava_trt.plugins_trt.kernels.cached_attention_decode import (
    attention_decode,
    combine_parts,
)
from longllava_trt.plugins_trt.launch_plans.cached_attention import (
    AttentionShape,
    AttentionTiles,
    plan_cached_attention,
    tiles_of,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KERNELS", "cached_attention"]

KERNELS = {
    "append_cache": append_cache,
    "attention_chunk": attention_chunk,
    "attention_decode": attention_decode,
    "combine_parts": combine_parts,
}
"""The kernels by the names that a `Launch` has."""
_DEFAULT_ARCH = 90
_HEAD_DIM_STEP = 16
"""Divisor of head_dim: this number of elements is loaded and multiplied at once."""


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    past_len: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    scale: float | None = None,
    workspace: Mapping[str, Tensor] | None = None,
    tiles: AttentionTiles | None = None,
) -> Tensor:
    """Run the operator.

    Args:
        q: A head's elements and the heads of a token are adjacent; tokens and sequences may be any
            distance apart, as in a view of a fused product. [batch, seq_len, heads, head_dim], T.
        k: Likewise. [batch, seq_len, kv_heads, head_dim], T.
        v: Likewise.
        key_cache: Written at positions past_len to past_len + seq_len of its first ``batch`` slots;
            what lies beyond is never read. Contiguous. [slots, kv_heads, capacity, head_dim], T.
        value_cache: Likewise.
        past_len: Positions held before this call; past_len + seq_len must not exceed ``capacity``,
            which nobody checks: what does not fit is dropped. On the device. [batch], int32.
        cos: Of every position's angles; with ``sin``, element i of queries and new keys turns with
            element i + head_dim / 2. Contiguous. [positions, head_dim / 2], float32.
        sin: Likewise.
        scale: Of the scores, above zero; head_dim ** -0.5 if omitted.
        workspace: Buffers by name, as `plan_cached_attention` wants them; allocated if omitted.
        tiles: Tile sizes; the architecture's if omitted.

    Returns:
        y, newly allocated. [batch, seq_len, heads, head_dim], T.

    Raises:
        ContractError: If shapes, dtypes or layouts disagree; lists all that do.

    Stream:
        Runs on PyTorch's current stream; does not synchronise.
    """
    tensors = {"q": q, "k": k, "v": v, "key_cache": key_cache, "value_cache": value_cache}
    tensors["past_len"] = past_len
    if cos is not None and sin is not None:
        tensors |= {"cos": cos, "sin": sin}
    _check(tensors, scale)
    batch, seq_len, heads, head_dim = q.shape
    shape = AttentionShape(batch, seq_len, heads, k.shape[2], head_dim, key_cache.shape[2])
    arch, multiprocessors = _card(q.device.index) if q.is_cuda else (_DEFAULT_ARCH, None)
    launches, spaces = plan_cached_attention(
        shape,
        tiles=tiles or tiles_of(arch, itemsize=q.element_size()),
        scale=scale,
        rotary="cos" in tensors,
        strides=(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        multiprocessors=multiprocessors,
    )
    y = q.new_empty(q.shape)
    held = {"cos": q, "sin": q, **tensors, "y": y, **(workspace or {})}
    for space in spaces:
        if space.name not in held:
            held[space.name] = q.new_empty(space.shape, dtype=q.new_empty(0).float().dtype)
    for launch in launches:
        kernel = KERNELS[launch.kernel]
        pointers = {name: held[name] for name in kernel.arg_names if name in held}
        constants = launch.blocks | {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        kernel[launch.grid](**pointers, **launch.integers, **constants)
    return y


@cache
def _card(device: int) -> tuple[int, int]:
    """Return a GPU's compute capability, 90 for 9.0, and its number of multiprocessors."""
    from triton.runtime import driver

    found = driver.active.utils.get_device_properties(device)
    return driver.active.get_current_target().arch, found["multiprocessor_count"]


def _check(tensors: dict[str, Tensor], scale: float | None) -> None:
    (batch, seq_len, heads, head_dim), kv_heads = tensors["q"].shape, tensors["k"].shape[2]
    slots, _, capacity, _ = tensors["key_cache"].shape
    new, cached = [batch, seq_len, kv_heads, head_dim], [slots, kv_heads, capacity, head_dim]
    dtype = str(tensors["q"].dtype)[6:]
    want = {
        "q": ([batch, seq_len, heads, head_dim], dtype),
        "k": (new, dtype),
        "v": (new, dtype),
        "key_cache": (cached, dtype),
        "value_cache": (cached, dtype),
        "past_len": ([batch], "int32"),
    }
    for name in ("cos", "sin"):
        if name in tensors:
            want[name] = ([tensors["cos"].shape[0], head_dim // 2], "float32")
    found = {name: (list(t.shape), str(t.dtype)[6:]) for name, t in tensors.items()}
    problems = [f"'{n}' must be {want[n]}, got {found[n]}" for n in want if want[n] != found[n]]
    rows = {name: tensors[name].stride() for name in ("q", "k", "v")}
    problems += [
        f"'{name}' must have adjacent heads, got strides {strides}"
        for name, strides in rows.items()
        if strides[2:] != (head_dim, 1)
    ]
    problems += [
        f"'{name}' must be contiguous"
        for name, tensor in tensors.items()
        if name not in rows and not tensor.is_contiguous()
    ]
    if "cos" in tensors and tensors["cos"].shape[0] < capacity:
        problems.append(f"'cos' must have {capacity} positions, got {tensors['cos'].shape[0]}")
    if heads % kv_heads or head_dim % _HEAD_DIM_STEP or slots < batch or not seq_len:
        sizes = f"{heads} heads, {kv_heads} kv_heads, head_dim {head_dim}, {slots} slots"
        problems.append(f"no sizes: {sizes}, batch {batch}, seq_len {seq_len}")
    if scale is not None and scale <= 0:
        problems.append(f"scale must be above zero, got {scale}")
    if problems:
        raise ContractError("cached_attention: " + "; ".join(problems))
