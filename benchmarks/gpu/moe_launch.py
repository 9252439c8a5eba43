"""SparseMoE's launches alone, into buffers made beforehand, as C++ does it; the launcher for tests also makes buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.gpu.moe_sizes import TOP_K

if TYPE_CHECKING:
    from torch import Tensor

    from longllava_trt.plugins_trt.launch_plans.sparse_moe import Tile

__all__ = ["prepared_moe"]


def prepared_moe(
    tensors: dict[str, Tensor], *, tiles: dict[str, Tile] | None = None
) -> tuple[Callable[[int], None], Tensor]:
    """Return a call that launches the kernels, and where its result lies.

    Args:
        tensors: From `moe_inputs`.
        tiles: Instead of some of those that are compiled ahead of time.
    """
    import torch

    from longllava_trt.plugins_trt.kernels.sparse_moe import KERNELS
    from longllava_trt.plugins_trt.launch_plans.sparse_moe import (
        TILES,
        MoeShape,
        plan_launches,
        plan_workspaces,
    )

    x, gate_up = tensors["x"], tensors["gate_up"]
    shape = MoeShape(
        x.shape[0], x.shape[1], gate_up.shape[1] // 2, tensors["router_logits"].shape[1], TOP_K
    )
    chosen = TILES | (tiles or {})
    dtypes = {"T": x.dtype, "float32": torch.float32, "int32": torch.int32}
    held = {"gate_up_scales": x, "down_scales": x} | tensors | {"y": torch.empty_like(x)}
    for space in plan_workspaces(shape, itemsize=x.element_size(), tiles=chosen):
        held[space.name] = torch.empty(space.shape, dtype=dtypes[space.dtype], device=x.device)
    launches = plan_launches(shape, itemsize=x.element_size(), tiles=chosen)

    def call(_: int = 0) -> None:
        for launch in launches:
            kernel = KERNELS[launch.kernel]
            pointers = {name: held[name] for name in kernel.arg_names if name in held}
            kernel[launch.grid](
                **pointers,
                **launch.integers,
                **launch.blocks,
                num_warps=launch.num_warps,
                num_stages=launch.num_stages,
            )

    return call, held["y"]
