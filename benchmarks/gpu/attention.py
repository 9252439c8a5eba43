"""CachedAttention: chunks after caches of several lengths, decode steps, PyTorch's attention.

The first and the last queries of a call are compared with float64 and with the plain version: a
call with only these queries gives the same numbers. PyTorch's attention gets whole, contiguous
keys, and no causal mask after a filled cache, which is faster: its rate counts the work that it
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt, errors, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import attention_inputs
from benchmarks.gpu.oracles import attention_oracle
from benchmarks.gpu.roofline import Work, attention_work
from benchmarks.gpu.timing import sets_beyond_cache, time_ms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["attention"]

_HEADS, _KV_HEADS, _HEAD_DIM = 32, 8, 128
_CHUNK = 4096
_CHECKED = 16
"""Queries at either end."""

Case = tuple[int, int, int]
"""Sequences, new tokens, positions before."""
_CASES: tuple[Case, ...] = (
    *((1, _CHUNK, past) for past in (0, 16_384, 100_000, 144_000)),
    *((batch, 1, past) for past in (4096, 16_384, 100_000, 144_000) for batch in (1, 8)),
    (1, 16, 100_000),
    (1, 256, 100_000),
)
_DRY_CASES: tuple[Case, ...] = ((1, 20, 0), (1, 20, 30), (2, 1, 40))


def attention(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a case."""
    for batch, seq_len, past in _DRY_CASES if context.is_dry else _CASES:
        case = f"batch {batch}, {seq_len} queries behind {past}"
        yield attempt(case, partial(_row, context, batch, seq_len, past))


def _row(context: BenchContext, batch: int, seq_len: int, past: int) -> dict[str, Any]:
    import torch

    from longllava_trt.plugins_trt.kernels.cached_attention import cached_attention

    sizes = (4, 2, 16) if context.is_dry else (_HEADS, _KV_HEADS, _HEAD_DIM)
    dtype = torch.float32 if context.is_dry else torch.bfloat16
    fresh = partial(
        attention_inputs, batch, seq_len, past, *sizes, dtype=dtype, device=context.device
    )
    tensors = fresh()
    row = _errors(tensors, cached_attention(**tensors), seq_len)
    work = attention_work(batch, seq_len, past, *sizes, itemsize=dtype.itemsize)
    held = 2 * tensors["key_cache"].numel() * dtype.itemsize
    wanted = sets_beyond_cache(held, device=context.device)
    sets = [tensors]
    sets += [fresh() for _ in range(wanted - 1)]
    ms = time_ms(lambda i: cached_attention(**sets[i]), device=context.device, sets=len(sets))
    row |= share(work, ms, context) | _rates(work, ms)
    calls = [_peer(each, past, seq_len) for each in sets]
    peer_ms = time_ms(lambda i: calls[i](), device=context.device, sets=len(sets))
    # behind a cache it computes the whole rectangle
    square = batch * 4 * seq_len * (past + seq_len) * sizes[0] * sizes[2]
    done = Work(work.bytes_, flops=square if past else work.flops)
    row |= {f"sdpa_{name}": rate for name, rate in _rates(done, peer_ms).items()}
    return row | {"sdpa_ms": peer_ms}


def _rates(work: Work, ms: float) -> dict[str, float]:
    return {"tflops": work.flops / ms / 1e9, "gb_per_s": work.bytes_ / ms / 1e6}


def _errors(tensors: dict[str, Any], y: Tensor, seq_len: int) -> dict[str, Any]:
    """Compare both ends of a call; the caches hold its tokens by now."""
    from longllava_trt.plugins_trt.kernels.cached_attention_naive import naive_cached_attention

    found: tuple[list[Tensor], ...] = ([], [], [])
    for begin in {0, max(seq_len - _CHECKED, 0)}:
        end = min(begin + _CHECKED, seq_len)
        new = {name: tensors[name][:, begin:end] for name in ("q", "k", "v")}
        part = {**tensors, **new, "past_len": tensors["past_len"] + begin}
        results = (y[:, begin:end], naive_cached_attention(**part), attention_oracle(part))
        for held, result in zip(found, results, strict=True):
            held.append(result)
    return errors(*found)


def _peer(tensors: dict[str, Any], past: int, seq_len: int) -> Callable[[], Tensor]:
    import torch

    batch = tensors["q"].shape[0]
    query = tensors["q"].transpose(1, 2)
    key, value = (
        tensors[name][:batch, :, : past + seq_len].contiguous()
        for name in ("key_cache", "value_cache")
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    return partial(attend, query, key, value, is_causal=past == 0 and seq_len > 1, enable_gqa=True)
