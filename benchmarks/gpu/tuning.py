"""Sweeps over what the launch arithmetic fixes, so that it can be fixed better. Tables, no decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import FORMATS, scan_inputs
from benchmarks.gpu.moe_launch import prepared_moe
from benchmarks.gpu.moe_sizes import TOKENS, TOP_K, make_moe, work_of
from benchmarks.gpu.roofline import scan_work
from benchmarks.gpu.scan import D_STATE, scan_sizes
from benchmarks.gpu.timing import time_ms

if TYPE_CHECKING:
    from longllava_trt.plugins_trt.launch_plans.sparse_moe import Tile

__all__ = ["tune_moe", "tune_scan"]

_CHUNKS = (2, 4, 8, 16, 32, 64)
_CHANNELS = ((32, 1), (64, 1), (64, 2), (128, 4))
"""Channels and warps of a program."""
_GROUPED = (
    (128, 64, 128, 128, 8, 3),
    (128, 64, 128, 128, 8, 4),
    (128, 128, 256, 128, 8, 3),
    (128, 128, 128, 128, 8, 4),
    (64, 128, 256, 128, 4, 3),
    (64, 64, 128, 128, 4, 4),
)
_DECODE = (
    (16, 32, 32, 256, 4, 4),
    (16, 16, 16, 512, 4, 4),
    (16, 32, 32, 512, 4, 3),
    (16, 64, 64, 256, 4, 3),
    (16, 16, 32, 256, 2, 5),
    (16, 32, 32, 128, 4, 6),
)
"""Fields of `Tile`; the first is what is compiled ahead of time."""
_ROUNDING = 0.02
"""Largest difference between two orders of the same sums in bfloat16, over the largest value."""


def tune_scan(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a choice, at 4096 and 16384 tokens."""
    import torch

    lengths, d_inner = scan_sizes(context)
    dtype = torch.float32 if context.is_dry else torch.bfloat16
    for seq_len in [n for n in lengths if n > 64] or [max(lengths)]:
        tensors = scan_inputs(seq_len, d_inner, D_STATE, dtype=dtype, device=context.device)
        choices = list(product(_CHUNKS, _CHANNELS))[: 2 if context.is_dry else None]
        for chunks, (channels, warps) in choices:
            case = f"L {seq_len}, {chunks} chunks, {channels} channels, {warps} warps"
            yield attempt(
                case,
                lambda t=tensors, n=chunks, c=channels, w=warps: _scan(  # type: ignore[misc]
                    context, t, chunks=n, channels=c, warps=w
                ),
            )


def _scan(
    context: BenchContext, tensors: dict[str, Any], *, chunks: int, channels: int, warps: int
) -> dict[str, Any]:
    """Launch what `selective_scan` would, in other grids."""
    from longllava_trt.plugins_trt.kernels import selective_scan as kernels
    from longllava_trt.plugins_trt.launch_plans.mixers import plan_selective_scan

    batch, seq_len, d_inner = tensors["u"].shape
    launches, spaces = plan_selective_scan(batch, seq_len, d_inner, D_STATE, chunks=chunks)
    named = {space.name: tensors["state"].new_empty(space.shape) for space in spaces}
    named |= {"chunk_states": tensors["state"]} if not spaces else {}
    outputs = {"y": tensors["u"].clone(), "state_out": tensors["state"].clone()}
    pointers = tensors | named | outputs
    plan = []
    for launch in launches:
        changed = launch
        if launch.kernel != "scan_prefix":
            grid = (-(-d_inner // channels), *launch.grid[1:])
            blocks = launch.blocks | {"block_channels": channels}
            changed = replace(launch, grid=grid, blocks=blocks, num_warps=warps)
        kernel = getattr(kernels, launch.kernel)
        plan.append((kernel, changed, {n: pointers[n] for n in kernel.arg_names if n in pointers}))

    def call(_: int) -> None:
        for kernel, launch, held in plan:
            options = launch.integers | launch.blocks | {"num_warps": launch.num_warps}
            kernel[launch.grid](**held, **options)

    work = scan_work(seq_len, d_inner, D_STATE, itemsize=tensors["u"].element_size())
    expected = kernels.selective_scan(**tensors)[0].double()
    row = share(work, time_ms(call, device=context.device), context)
    error = (outputs["y"].double() - expected).abs().max() / expected.abs().max()
    return {"ok": float(error) < _ROUNDING, **row}


def tune_moe(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a tile, for prefill and then for decode, in every format."""
    from longllava_trt.plugins_trt.launch_plans.sparse_moe import MoeShape, Tile, select_tile

    for num_tokens, weights in product((17, 1) if context.is_dry else TOKENS, FORMATS):
        tensors = make_moe(context, num_tokens, weights)
        hidden, intermediate = tensors["x"].shape[1], tensors["gate_up"].shape[1] // 2
        shape = MoeShape(num_tokens, hidden, intermediate, len(tensors["gate_up"]), TOP_K)
        path = select_tile(shape, itemsize=tensors["x"].element_size())
        choices = (_DECODE if path == "decode" else _GROUPED)[: 1 if context.is_dry else None]
        for sizes in choices:
            case = f"{weights}, {num_tokens} tokens, {path} {sizes}"
            yield attempt(
                case,
                lambda t=tensors, w=weights, p=path, s=sizes: _moe(  # type: ignore[misc]
                    context, t, w, tiles={p: Tile(*s)}
                ),
            )


def _moe(
    context: BenchContext, tensors: dict[str, Any], weights: str, *, tiles: dict[str, Tile]
) -> dict[str, Any]:
    planned, expected = prepared_moe(tensors)
    planned(0)
    call, y = prepared_moe(tensors, tiles=tiles)
    call(0)
    error = (y.double() - expected.double()).abs().max() / expected.double().abs().max()
    row = share(work_of(tensors, weights), time_ms(call, device=context.device), context)
    return {"ok": float(error) < _ROUNDING, **row}
