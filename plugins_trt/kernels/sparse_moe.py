"""SparseMoE on PyTorch tensors: launches the Triton kernels, for tests and GPU benchmarks.

In deployment C++ launches the same kernels; `launch_plans/sparse_moe.py` has the arithmetic of
both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.kernels.sparse_moe_combine import combine_slots
from longllava_trt.plugins_trt.kernels.sparse_moe_decode import decode_down, decode_gate_up
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP
from longllava_trt.plugins_trt.kernels.sparse_moe_grouped import grouped_down, grouped_gate_up
from longllava_trt.plugins_trt.kernels.sparse_moe_routing import route_tokens
from longllava_trt.plugins_trt.kernels.sparse_moe_sort import sort_slots
from longllava_trt.plugins_trt.launch_plans.sparse_moe import (
    TILES,
    MoeShape,
    Tile,
    check_shape,
    plan_launches,
    plan_workspaces,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KERNELS", "sparse_moe"]

KERNELS = {
    "route_tokens": route_tokens,
    "sort_slots": sort_slots,
    "grouped_gate_up": grouped_gate_up,
    "grouped_down": grouped_down,
    "decode_gate_up": decode_gate_up,
    "decode_down": decode_down,
    "combine_slots": combine_slots,
}
"""The kernels by the names that a `Launch` has."""


def sparse_moe(
    x: Tensor,
    router_logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    top_k: int,
    gate_up_scales: Tensor | None = None,
    down_scales: Tensor | None = None,
    tiles: dict[str, Tile] = TILES,
) -> Tensor:
    """Run the mixture of experts.

    Args:
        x: [num_tokens, hidden], float32, float16 or bfloat16.
        router_logits: [num_tokens, num_experts], dtype of ``x``.
        gate_up: Gate's rows, then up's. [num_experts, 2 * intermediate, hidden], dtype of ``x`` or
            int8; or uint8 with two int4 a byte, [num_experts, 2 * intermediate, hidden / 2].
        down: [num_experts, hidden, intermediate], in the same format.
        top_k: Experts that each token visits.
        gate_up_scales: For int8 [num_experts, 2 * intermediate]; for int4 [num_experts,
            2 * intermediate, ceil(hidden / 128)]; float32.
        down_scales: For int8 [num_experts, hidden]; for int4 [num_experts, hidden,
            ceil(intermediate / 128)]; float32.
        tiles: Tile sizes by path.

    Returns:
        The weighted sum over experts, newly allocated. [num_tokens, hidden], dtype of ``x``.

    Raises:
        ContractError: If there are too many experts, or shapes or dtypes disagree; lists all of
            these.

    Stream:
        Runs on PyTorch's current stream; does not synchronise.
    """
    inputs = {
        "x": x,
        "router_logits": router_logits,
        "gate_up": gate_up,
        "down": down,
        "gate_up_scales": gate_up_scales,
        "down_scales": down_scales,
    }
    shape = _check(inputs, top_k=top_k)
    tensors = {name: (x if t is None else t).contiguous() for name, t in inputs.items()}
    tensors["y"] = _empty(x, tuple(x.shape), "T")
    if shape.num_tokens:
        for space in plan_workspaces(shape, itemsize=x.element_size(), tiles=tiles):
            tensors[space.name] = _empty(x, space.shape, space.dtype)
        _launch(tensors, shape, tiles=tiles)
    return tensors["y"]


def _launch(tensors: dict[str, Tensor], shape: MoeShape, *, tiles: dict[str, Tile]) -> None:
    for launch in plan_launches(shape, itemsize=tensors["x"].element_size(), tiles=tiles):
        kernel = KERNELS[launch.kernel]
        pointers = {name: tensors[name] for name in kernel.arg_names if name in tensors}
        constants = launch.blocks | {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        kernel[launch.grid](**pointers, **launch.integers, **constants)


def _empty(like: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    if dtype == "T":
        return like.new_empty(shape)
    none = like.new_empty(0)
    # torch is not imported here; a tensor knows its own dtypes
    kind = none.float() if dtype == "float32" else none.int()
    return like.new_empty(shape, dtype=kind.dtype)


def _check(inputs: dict[str, Tensor | None], *, top_k: int) -> MoeShape:
    present = {name: t for name, t in inputs.items() if t is not None}
    found = {name: (list(t.shape), str(t.dtype)[6:]) for name, t in present.items()}
    (tokens, hidden), dtype = found["x"]
    (experts, rows, _), format_ = found["gate_up"]
    shape = MoeShape(tokens, hidden, rows // 2, experts, top_k)
    check_shape(shape)
    packed = 2 if format_ == "uint8" else 1
    want: dict[str, tuple[list[int], str]] = {
        "x": ([tokens, hidden], dtype),
        "router_logits": ([tokens, experts], dtype),
        "gate_up": ([experts, 2 * (rows // 2), hidden // packed], format_),
        "down": ([experts, hidden, rows // 2 // packed], format_),
    }
    if format_ in {"int8", "uint8"}:
        groups = [[-(-size // GROUP)] if packed == 2 else [] for size in (hidden, rows // 2)]
        want["gate_up_scales"] = ([experts, rows, *groups[0]], "float32")
        want["down_scales"] = ([experts, hidden, *groups[1]], "float32")
    else:
        want["gate_up"] = (want["gate_up"][0], dtype)
    if packed == 2 and (hidden % 32 or rows // 2 % 32):
        raise ContractError(
            "sparse_moe: int4 experts need hidden and intermediate to be multiples of 32, got "
            f"{hidden} and {rows // 2}; use int8"
        )
    if found != want:
        names = sorted(n for n in want.keys() | found if want.get(n) != found.get(n))
        problems = [f"'{n}' must be {want.get(n)}, got {found.get(n)}" for n in names]
        raise ContractError("sparse_moe: " + "; ".join(problems))
    return shape
