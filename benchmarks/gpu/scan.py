"""SelectiveScan: the Triton kernels as planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.compare import attempt, errors, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import nbytes, scan_inputs
from benchmarks.gpu.oracles import scan_oracle
from benchmarks.gpu.roofline import scan_work
from benchmarks.gpu.timing import sets_beyond_cache, time_ms

__all__ = ["D_STATE", "scan", "scan_sizes"]

D_STATE = 16


def scan_sizes(context: BenchContext) -> tuple[tuple[int, ...], int]:
    """Return lengths and channels."""
    return ((1, 5), 8) if context.is_dry else ((4096, 1, 16384, 64), 8192)


def scan(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a length."""
    lengths, d_inner = scan_sizes(context)
    for seq_len in lengths:
        yield attempt(f"L {seq_len}", lambda n=seq_len: _row(context, n, d_inner))  # type: ignore[misc]


def _row(context: BenchContext, seq_len: int, d_inner: int) -> dict[str, Any]:
    import torch

    from longllava_trt.plugins_trt.kernels.naive import naive_selective_scan
    from longllava_trt.plugins_trt.kernels.selective_scan import selective_scan

    device, dtype = context.device, torch.float32 if context.is_dry else torch.bfloat16

    def fresh() -> dict[str, Any]:
        return scan_inputs(seq_len, d_inner, D_STATE, dtype=dtype, device=device)

    tensors = fresh()
    twins = naive_selective_scan(**tensors)
    row = errors(selective_scan(**tensors), twins, scan_oracle(tensors))
    sets = [tensors]
    sets += [fresh() for _ in range(sets_beyond_cache(nbytes(tensors), device=device) - 1)]
    ms = time_ms(lambda i: selective_scan(**sets[i]), device=device, sets=len(sets))
    work = scan_work(seq_len, d_inner, D_STATE, itemsize=dtype.itemsize)
    row |= share(work, ms, context)
    if seq_len <= 64:  # a step takes some ten launches, which at more tokens only take patience
        row["twin_ms"] = time_ms(lambda _: naive_selective_scan(**tensors), device=device)
    return row
