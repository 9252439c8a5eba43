"""SparseMoE: the Triton kernels as planned, in every format of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.compare import attempt, errors, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import FORMATS
from benchmarks.gpu.moe_launch import prepared_moe
from benchmarks.gpu.moe_sizes import TOKENS, TOP_K, make_moe, work_of
from benchmarks.gpu.oracles import moe_oracle
from benchmarks.gpu.timing import time_ms

__all__ = ["moe"]


def moe(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a format and number of tokens."""
    for weights in FORMATS:
        for num_tokens in (17, 1) if context.is_dry else TOKENS:
            case = f"{weights}, {num_tokens} tokens"
            yield attempt(case, lambda w=weights, n=num_tokens: _row(context, n, w))  # type: ignore[misc]


def _row(context: BenchContext, num_tokens: int, weights: str) -> dict[str, Any]:
    from longllava_trt.plugins_trt.kernels.sparse_moe_naive import naive_sparse_moe

    tensors = make_moe(context, num_tokens, weights)
    call, y = prepared_moe(tensors)
    y.fill_(float("nan"))
    call(0)
    expected = moe_oracle(tensors, top_k=TOP_K)
    twin = naive_sparse_moe(**tensors, top_k=TOP_K)
    row = errors((y,), (twin,), (expected,))
    del twin, expected
    ms = time_ms(call, device=context.device)
    work = work_of(tensors, weights)
    row |= share(work, ms, context)
    row["bytes_per_s"] = 1e3 * work.bytes_ / ms
    row["flops_per_s"] = 1e3 * work.flops / ms
    if weights == "bf16":

        def run_twin(_: int) -> object:
            return naive_sparse_moe(**tensors, top_k=TOP_K)

        row["twin_ms"] = time_ms(run_twin, device=context.device, is_graph=False)
    return row
