"""The plugins' host code on a real GPU: grids, arguments and workspaces computed in C++.

Each operator runs through the library's C interface and is compared with float64 and with the
Triton launcher. Outputs and workspace begin full of NaN, and the bytes behind the workspace must
stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt, errors, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import (
    FORMATS,
    attention_inputs,
    conv_inputs,
    mamba_inputs,
    moe_inputs,
    scan_inputs,
)
from benchmarks.gpu.moe_sizes import TOP_K, make_moe, work_of
from benchmarks.gpu.oracles import (
    attention_oracle,
    conv_oracle,
    mamba_oracle,
    moe_oracle,
    scan_oracle,
)
from benchmarks.gpu.plugin_library import PluginLibrary
from benchmarks.gpu.roofline import Work, attention_work, conv_work, mamba_work, scan_work
from benchmarks.gpu.timing import time_ms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["plugin", "plugin_ptx"]

_GUARD, _GUARD_BYTES = 0xA5, 4096
_CONV = "activation=silu"
_EPS = 1e-6
_MAMBA = f"eps={_EPS}"
_HEADS = (32, 8, 128)
"""Heads, key/value heads and elements of a head."""
_PAST = 16_384
_READ = ("q", "key_cache", "value_cache", "past_len")
"""Inputs that the plugin takes; the launcher in Python appends to the caches too."""
Call = tuple[str, dict[str, Any], tuple["Tensor", ...], tuple["Tensor", ...], Work]
"""Attributes, inputs, the Triton launcher's outputs, float64's, and the least work."""


def plugin(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row an operator, size and format."""
    if context.library is None:
        yield {"case": "not run: name the library with --library"}
        return
    library = PluginLibrary(context.library)
    yield {"case": "library", "value": library.version}
    if context.is_dry:
        yield from _workspaces(library)
        return
    for op_type, case, make in _calls(context):
        yield attempt(
            f"{op_type}, {case}",
            lambda o=op_type, m=make: _row(library, o, m(), context),  # type: ignore[misc]
        )


def plugin_ptx(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield the same for a library for SM80 only; a newer GPU's driver translates its PTX."""
    library = context.library and context.library.with_stem(f"{context.library.stem}_sm80")
    if library is None or not library.is_file():
        yield {"case": "not run: name the library with --library, one for SM80 alone beside it"}
        return
    yield from plugin(replace(context, library=library))


def _workspaces(library: PluginLibrary) -> Iterator[dict[str, Any]]:
    """Check, without a driver, that all operators, formats and attributes are known."""
    import torch

    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
    asked = {
        ("SelectiveScan", ""): scan_inputs(4096, 8192, 16, **options),
        ("CausalConvWithState", _CONV): conv_inputs(4096, 8192, 4, channels_last=False, **options),
    }
    asked["MambaScan", _MAMBA] = mamba_inputs(4096, 8192, 16, 256, **options)
    held = attention_inputs(1, 4096, 144_000, *_HEADS, **options)
    asked["CachedAttention", ""] = {name: held[name].contiguous() for name in _READ}
    for weights in FORMATS:
        experts = moe_inputs(4096, 4096, 14336, num_experts=16, weights=weights, **options)
        asked["SparseMoE", _moe_attributes(weights)] = experts
    for (op_type, attributes), tensors in asked.items():
        found = library.workspace_bytes(op_type, attributes, list(tensors.values()))
        yield {"case": f"{op_type} {attributes}", "workspace_bytes": found}


def _moe_attributes(weights: str) -> str:
    return f"top_k={TOP_K} weight_format={'none' if weights == 'bf16' else weights}"


def _calls(context: BenchContext) -> Iterator[tuple[str, str, Callable[[], Call]]]:
    for n in (1, 64, 4096):
        yield "SelectiveScan", f"L {n}", lambda n=n: _scan(context, n)  # type: ignore[misc]
        yield "MambaScan", f"L {n}", lambda n=n: _mamba(context, n)  # type: ignore[misc]
        yield "CausalConvWithState", f"L {n}", lambda n=n: _conv(context, n)  # type: ignore[misc]
        yield "CachedAttention", f"L {n}", lambda n=n: _attention(context, n)  # type: ignore[misc]
        for weights in FORMATS:
            case = f"{weights}, {n} tokens"
            yield "SparseMoE", case, lambda n=n, w=weights: _moe(context, n, w)  # type: ignore[misc]


def _scan(context: BenchContext, seq_len: int) -> Call:
    import torch

    from longllava_trt.plugins_trt.kernels.selective_scan import selective_scan

    tensors = scan_inputs(seq_len, 8192, 16, dtype=torch.bfloat16, device=context.device)
    work = scan_work(seq_len, 8192, 16, itemsize=2)
    return "", tensors, selective_scan(**tensors), scan_oracle(tensors), work


def _mamba(context: BenchContext, seq_len: int) -> Call:
    import torch

    from longllava_trt.plugins_trt.kernels.mamba_scan import mamba_scan

    sizes = (seq_len, 8192, 16, 256)
    tensors = mamba_inputs(*sizes, dtype=torch.bfloat16, device=context.device)
    work = mamba_work(*sizes, itemsize=2)
    kernels = mamba_scan(**tensors, eps=_EPS)
    return _MAMBA, tensors, kernels, mamba_oracle(tensors, eps=_EPS), work


def _conv(context: BenchContext, seq_len: int) -> Call:
    import torch

    from longllava_trt.plugins_trt.kernels.causal_conv import causal_conv

    tensors = conv_inputs(
        seq_len, 8192, 4, dtype=torch.bfloat16, device=context.device, channels_last=False
    )
    work = conv_work(seq_len, 8192, 4, itemsize=2)
    return _CONV, tensors, causal_conv(**tensors), conv_oracle(tensors), work


def _attention(context: BenchContext, seq_len: int) -> Call:
    import torch

    from longllava_trt.plugins_trt.kernels.cached_attention import cached_attention

    # sequences as a step may have them, and a chunk that float64 can hold
    batch, seq_len, past = (4, 1, _PAST) if seq_len == 1 else (1, min(seq_len, 512), _PAST)
    sizes = (batch, seq_len, past, *_HEADS)
    tensors = attention_inputs(*sizes, dtype=torch.bfloat16, device=context.device)
    # writes the new keys and values, which the plugin finds in the caches
    y = cached_attention(**tensors)
    work = attention_work(*sizes, itemsize=2)
    read = {name: tensors[name] for name in _READ}
    return "", read, (y,), (attention_oracle(tensors),), work


def _moe(context: BenchContext, num_tokens: int, weights: str) -> Call:
    from longllava_trt.plugins_trt.kernels.sparse_moe import sparse_moe

    tensors = make_moe(context, num_tokens, weights)
    kernels = (sparse_moe(**tensors, top_k=TOP_K),)
    attributes = _moe_attributes(weights)
    return (
        attributes,
        tensors,
        kernels,
        (moe_oracle(tensors, top_k=TOP_K),),
        work_of(tensors, weights),
    )


def _row(library: PluginLibrary, op_type: str, call: Call, context: BenchContext) -> dict[str, Any]:
    import torch

    attributes, tensors, kernels, expected, work = call
    inputs = [t.contiguous() for t in tensors.values()]
    outputs = [torch.full_like(t, torch.nan) for t in kernels]
    nbytes = library.workspace_bytes(op_type, attributes, inputs)
    # all ones are NaN in every float, and -1 in an integer
    space = torch.full((nbytes + _GUARD_BYTES,), 255, dtype=torch.uint8, device=context.device)
    space[nbytes:] = _GUARD

    def enqueue(_: int = 0) -> None:
        library.enqueue(op_type, attributes, inputs, outputs=outputs, workspace=space)

    enqueue()
    torch.cuda.synchronize()
    row = errors(outputs, kernels, expected)
    row["ok"] = row["ok"] and bool((space[nbytes:] == _GUARD).all())
    row |= share(work, time_ms(enqueue, device=context.device), context)
    return row | {"workspace_bytes": nbytes}
