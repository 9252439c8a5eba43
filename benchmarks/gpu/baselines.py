"""Alternatives on the same GPU in the same run: PyTorch eager, compiled, and its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import scan_inputs
from benchmarks.gpu.moe_sizes import TOKENS, TOP_K, make_moe, work_of
from benchmarks.gpu.roofline import Work, scan_work
from benchmarks.gpu.scan import D_STATE, scan_sizes
from benchmarks.gpu.timing import time_ms

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["baselines"]

_HEADS, _KV_HEADS, _HEAD_DIM = 32, 8, 128


def baselines(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a peer and size; sizes as of our own kernels' steps."""
    for depth in (64,) if context.is_dry else (4096, 16384, 100_000, 144_000):
        yield attempt(f"attention, 1 query, {depth} keys", lambda n=depth: _attention(context, n))  # type: ignore[misc]
    yield attempt("scan step, eager", lambda: _scan_step(context, is_compiled=False))
    yield attempt("scan step, compiled", lambda: _scan_step(context, is_compiled=True))
    yield attempt("scan by steps, eager", lambda: _scan_loop(context))
    for num_tokens in (17, 1) if context.is_dry else TOKENS:
        for is_compiled in (False, True):
            case = f"experts, {num_tokens} tokens, {'compiled' if is_compiled else 'eager'}"
            yield attempt(
                case,
                lambda n=num_tokens, c=is_compiled: _experts(context, n, is_compiled=c),  # type: ignore[misc]
            )


def _dtype(context: BenchContext) -> torch.dtype:
    import torch

    return torch.float32 if context.is_dry else torch.bfloat16


def _compiled(function: Callable[..., Any], context: BenchContext) -> Callable[..., Any]:
    import torch

    # dry: no compiler is needed to see that the call is right
    return torch.compile(function, backend="eager" if context.is_dry else "inductor")


def _attention(context: BenchContext, depth: int) -> dict[str, Any]:
    import torch

    options: dict[str, Any] = {"dtype": _dtype(context), "device": context.device}
    query = torch.randn(1, _HEADS, 1, _HEAD_DIM, **options)
    key, value = (torch.randn(1, _KV_HEADS, depth, _HEAD_DIM, **options) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    ms = time_ms(lambda _: attend(query, key, value, enable_gqa=True), device=context.device)
    itemsize = query.element_size()
    bytes_ = itemsize * 2 * depth * _KV_HEADS * _HEAD_DIM
    return share(Work(bytes_, flops=4 * depth * _HEADS * _HEAD_DIM), ms, context)


def _scan_step(context: BenchContext, *, is_compiled: bool) -> dict[str, Any]:
    from longllava_trt.plugins_trt.kernels.naive import naive_selective_scan

    d_inner = scan_sizes(context)[1]
    tensors = scan_inputs(1, d_inner, D_STATE, dtype=_dtype(context), device=context.device)
    step = _compiled(naive_selective_scan, context) if is_compiled else naive_selective_scan
    ms = time_ms(lambda _: step(**tensors), device=context.device)
    return share(scan_work(1, d_inner, D_STATE, itemsize=tensors["u"].element_size()), ms, context)


def _scan_loop(context: BenchContext) -> dict[str, Any]:
    from longllava_trt.plugins_trt.kernels.naive import naive_selective_scan

    lengths, d_inner = scan_sizes(context)
    seq_len = min(max(lengths), 4096)
    tensors = scan_inputs(seq_len, d_inner, D_STATE, dtype=_dtype(context), device=context.device)
    call = lambda _: naive_selective_scan(**tensors)  # noqa: E731
    ms = time_ms(call, device=context.device, is_graph=False)
    work = scan_work(seq_len, d_inner, D_STATE, itemsize=tensors["u"].element_size())
    return {"seq_len": seq_len, **share(work, ms, context)}


def _experts(context: BenchContext, num_tokens: int, *, is_compiled: bool) -> dict[str, Any]:
    tensors = make_moe(context, num_tokens, "bf16")
    # one token's two experts as a gather of their weights, which a compiler can fuse; more tokens
    # as a loop
    run = _gathered if num_tokens <= 2 else _looped
    run = _compiled(run, context) if is_compiled else run
    ms = time_ms(lambda _: run(**tensors), device=context.device, is_graph=num_tokens <= 2)
    return share(work_of(tensors, "bf16"), ms, context)


def _gathered(x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    import torch

    weights, chosen = router_logits.float().softmax(-1).topk(TOP_K, dim=-1)
    gate, up = torch.einsum("th,tkih->tki", x, gate_up[chosen]).chunk(2, dim=-1)
    out = torch.einsum("tki,tkhi->tkh", torch.nn.functional.silu(gate) * up, down[chosen])
    return (out * weights.to(x.dtype)[..., None]).sum(1)


def _looped(x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    import torch

    weights, chosen = router_logits.float().softmax(-1).topk(TOP_K, dim=-1)
    y = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        tokens, ranks = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (x[tokens] @ gate_up[expert].T).chunk(2, dim=-1)
        out = (torch.nn.functional.silu(gate) * up) @ down[expert].T
        y.index_add_(0, tokens, out * weights[tokens, ranks, None].to(x.dtype))
    return y
