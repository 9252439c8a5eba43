"""CausalConvWithState: both layouts, a chunk and a decode step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.compare import attempt, errors, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import conv_inputs, nbytes
from benchmarks.gpu.oracles import conv_oracle
from benchmarks.gpu.roofline import conv_work
from benchmarks.gpu.timing import sets_beyond_cache, time_ms

__all__ = ["conv"]

_D_CONV = 4


def conv(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a length and layout."""
    lengths, d_inner = ((5, 1), 16) if context.is_dry else ((4096, 1), 8192)
    for seq_len in lengths:
        for last in (True, False):
            case = f"L {seq_len} channels {'last' if last else 'first'}"
            yield attempt(case, lambda n=seq_len, c=last: _row(context, n, d_inner, is_last=c))  # type: ignore[misc]


def _row(context: BenchContext, seq_len: int, d_inner: int, *, is_last: bool) -> dict[str, Any]:
    import torch

    from longllava_trt.plugins_trt.kernels.causal_conv import causal_conv
    from longllava_trt.plugins_trt.kernels.naive import naive_causal_conv

    device, dtype = context.device, torch.float32 if context.is_dry else torch.bfloat16

    def fresh() -> dict[str, Any]:
        return conv_inputs(
            seq_len, d_inner, _D_CONV, dtype=dtype, device=device, channels_last=is_last
        )

    tensors = fresh()
    twins = naive_causal_conv(**tensors)
    row = errors(causal_conv(**tensors), twins, conv_oracle(tensors))
    sets = [tensors]
    sets += [fresh() for _ in range(sets_beyond_cache(nbytes(tensors), device=device) - 1)]
    ms = time_ms(lambda i: causal_conv(**sets[i]), device=device, sets=len(sets))
    row |= share(conv_work(seq_len, d_inner, _D_CONV, itemsize=dtype.itemsize), ms, context)
    row["twin_ms"] = time_ms(lambda _: naive_causal_conv(**tensors), device=device)
    return row
