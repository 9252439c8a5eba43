"""Decoders of the published sizes on our own kernels: prefill, and decode at depth.

Weights are random and made on the GPU.

Time and memory mean something, answers do not; `answers` and `tests` say whether numbers are right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.roofline import Work

if TYPE_CHECKING:
    from torch import Tensor

    from longllava_trt.core.weight_formats import MoeQuant
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.state import KernelsState

__all__ = ["decoder_9b", "decoder_53b", "random_decoder"]

_DEPTHS, _DRY_DEPTHS = (4096, 16_384, 100_000, 144_000), (4, 6)
_CHUNK, _DRY_CHUNK = 4096, 4
_CHUNKS, _DRY_CHUNKS = (1024, 2048, 8192), (3,)
"""Other lengths that are tried at the second depth."""
_STEPS, _DRY_STEPS = 64, 1
_BATCHES = (4, 16)


def decoder_9b(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield rows of the 9B in bfloat16."""
    yield from _measure(context, "tiny-dense" if context.is_dry else "9b", "none")


def decoder_53b(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield rows of the 53B, its experts in int8."""
    yield from _measure(context, "tiny" if context.is_dry else "53b", "w8a16")


def random_decoder(context: BenchContext, preset: str, quant: MoeQuant) -> KernelsDecoder:
    """Return a decoder with random weights.

    Args:
        context: Says which device; dry, arithmetic is float32.
        preset: A size that `longllava-trt synth` knows.
        quant: How experts are stored.
    """
    import torch

    from longllava_trt.models.contracts import stage_specs
    from longllava_trt.models.registry import find_preset
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.decoder_model import DecoderModel
    from longllava_trt.runtime.backends.kernels.device import DeviceStream
    from longllava_trt.runtime.backends.kernels.weight_plan import plan_decoder
    from longllava_trt.runtime.backends.kernels.weights import random_weights

    config = find_preset(preset)
    if context.is_dry:
        # one layer of Mamba, and experts where there are any; one of attention: a step takes the
        # interpreter seconds
        config = replace(config, decoder=replace(config.decoder, layers=config.decoder.layers[3:5]))
    dtype = "float32" if context.is_dry else "bfloat16"
    stream = DeviceStream(torch.device(context.device))
    weights = random_weights(plan_decoder(config, dtype, quant), stream)
    model = DecoderModel.of(config.decoder, weights)
    return KernelsDecoder(model, stage_specs(config, dtype)["decoder"], stream)


def _measure(context: BenchContext, preset: str, quant: MoeQuant) -> Iterator[dict[str, Any]]:
    begin = time.perf_counter()
    decoder = random_decoder(context, preset, quant)
    _wait(context)
    yield {
        "case": f"{preset} {quant}, weights made",
        "seconds": time.perf_counter() - begin,
        **_memory(context),
    }
    depths, chunk = (_DRY_DEPTHS, _DRY_CHUNK) if context.is_dry else (_DEPTHS, _CHUNK)
    chunks = _DRY_CHUNKS if context.is_dry else _CHUNKS
    yield attempt("warm-up", lambda: _warm_up(context, decoder, (*chunks, chunk)))
    yield from _at_depths(context, decoder, depths, chunk)
    for length in chunks:
        yield attempt(
            f"{depths[1]} positions in chunks of {length}",
            partial(_chunked, context, decoder, depths[1], length),
        )
    yield attempt("whole against chunks", lambda: _whole_against_chunks(context, decoder))
    for batch in (2,) if context.is_dry else _BATCHES:
        yield attempt(
            f"{batch} sequences of {depths[0]} positions, a step",
            partial(_batch, context, decoder, batch, depths[0]),
        )


def _at_depths(
    context: BenchContext, decoder: KernelsDecoder, depths: tuple[int, ...], chunk: int
) -> Iterator[dict[str, Any]]:
    """Feed one sequence; at each depth stop to take some steps, and go on from there."""
    state = decoder.new_state(capacity=depths[-1] + 3 * _STEPS * len(depths))
    seconds = 0.0
    for depth in depths:
        seconds += _feed(context, decoder, state, depth, chunk)
        yield attempt(
            f"{depth} positions",
            partial(_row, context, decoder, state, depth=depth, prefill_s=seconds),
        )
    if not context.is_dry:
        yield from _profiles(decoder, state, chunk)


def _embeds(context: BenchContext, decoder: KernelsDecoder, batch: int, length: int) -> Tensor:
    import torch

    shape = (batch, length, decoder.model.spec.hidden_size)
    return torch.randn(shape, device=context.device).to(decoder.model.dtype)


def _warm_up(
    context: BenchContext, decoder: KernelsDecoder, lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Compile what every later call needs."""
    begin = time.perf_counter()
    state = decoder.new_state(capacity=sum(lengths) + 16)
    with decoder.stream.active():
        for length in (*lengths, 1, 1, 1):
            decoder.feed(_embeds(context, decoder, 1, length), [state])
    _wait(context)
    return {"seconds": time.perf_counter() - begin, "graphs": str(decoder.graphs_are_right)}


def _feed(
    context: BenchContext, decoder: KernelsDecoder, state: KernelsState, depth: int, chunk: int
) -> float:
    """Feed up to a depth; returns the seconds."""
    with decoder.stream.active():
        embeds = _embeds(context, decoder, 1, chunk)
        _wait(context)
        begin = time.perf_counter()
        while state.past_len < depth:
            decoder.feed(embeds[:, : min(chunk, depth - state.past_len)], [state])
        _wait(context)
    return time.perf_counter() - begin


def _row(
    context: BenchContext,
    decoder: KernelsDecoder,
    state: KernelsState,
    *,
    depth: int,
    prefill_s: float,
) -> dict[str, Any]:
    import torch

    device_s = _steps(context, decoder, [state])
    with decoder.stream.active():
        one = decoder.stream.to_host(_embeds(context, decoder, 1, 1))
    decoder.step(one, state)
    begin = time.perf_counter()
    steps = _count(context)
    for _ in range(steps):
        logits = decoder.step(one, state)
    host_s = (time.perf_counter() - begin) / steps
    floor, _ = _decode_work(decoder, depth).floor(context.ceilings)
    return {
        "ok": bool(torch.from_numpy(logits).isfinite().all()),
        "prefill_s": prefill_s,
        "prefill_tokens_per_s": depth / prefill_s,
        "decode_tokens_per_s": 1 / device_s,
        "decode_tokens_per_s_from_host": 1 / host_s,
        "decode_roofline_share": floor / (1e3 * device_s),
        "graphs": str(decoder.graphs_are_right),
        **_memory(context),
    }


def _steps(context: BenchContext, decoder: KernelsDecoder, states: list[KernelsState]) -> float:
    """Return the seconds of a decode step, launched one after another."""
    with decoder.stream.active():
        one = _embeds(context, decoder, len(states), 1)
        for _ in range(1 if context.is_dry else 3):
            decoder.feed(one, states)
        _wait(context)
        begin = time.perf_counter()
        for _ in range(_count(context)):
            decoder.feed(one, states)
        _wait(context)
    return (time.perf_counter() - begin) / _count(context)


def _count(context: BenchContext) -> int:
    """Return how many steps are timed."""
    return _DRY_STEPS if context.is_dry else _STEPS


def _decode_work(decoder: KernelsDecoder, depth: int) -> Work:
    """Return the bytes of a step: weights of the layers that a token meets, and keys and values."""
    spec, itemsize = decoder.model.spec, decoder.model.dtype.itemsize
    nbytes: float = decoder.model.lm_head.nbytes
    for number, layer in enumerate(decoder.model.layers):
        experts = spec.moe_layers.get(number)
        for name, tensor in layer.items():
            is_shared = experts is not None and name.startswith("experts")
            share = experts.top_k / experts.num_experts if experts and is_shared else 1
            nbytes += tensor.nbytes * share
    nbytes += sum(2 * depth * m.kv_size * itemsize for m in spec.attention_layers.values())
    return Work(nbytes)


def _chunked(
    context: BenchContext, decoder: KernelsDecoder, depth: int, chunk: int
) -> dict[str, Any]:
    state = decoder.new_state(capacity=depth + chunk)
    seconds = _feed(context, decoder, state, depth, chunk)
    return {"prefill_s": seconds, "prefill_tokens_per_s": depth / seconds}


def _whole_against_chunks(context: BenchContext, decoder: KernelsDecoder) -> dict[str, Any]:
    """Return by how much the last logits of one prompt differ, fed at once or in odd pieces."""
    lengths = (3, 1) if context.is_dry else (1000, 513, 1, 1, 534)
    embeds = _embeds(context, decoder, 1, sum(lengths))
    found = []
    for pieces in ((sum(lengths),), lengths):
        state = decoder.new_state(capacity=sum(lengths) + 8)
        with decoder.stream.active():
            for piece in embeds.split(pieces, dim=1):
                logits = decoder.feed(piece.contiguous(), [state])
            found.append(logits.double().clone())
    _wait(context)
    error = float((found[0] - found[1]).norm() / found[0].norm())
    # bfloat16 rounds at other places where products are cut otherwise
    return {"ok": error < (1e-4 if context.is_dry else 5e-2), "error": error}


def _batch(
    context: BenchContext, decoder: KernelsDecoder, batch: int, depth: int
) -> dict[str, Any]:
    """Step several sequences together, as if each had been fed."""
    states = decoder.new_states(batch, capacity=depth + 4 * _STEPS)
    for state in states:
        state.past_len = depth
    states[0].pool.past_len.fill_(depth)
    seconds = _steps(context, decoder, states)
    return {"step_ms": 1e3 * seconds, "decode_tokens_per_s": batch / seconds}


def _profiles(decoder: KernelsDecoder, state: KernelsState, chunk: int) -> Iterator[dict[str, Any]]:
    """Yield the kernels of a chunk and of a step at the state's depth, longest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    state.reserve(state.past_len + chunk + 2)
    for case, length in (("a chunk", chunk), ("a step", 1)):
        if state.past_len + length > state.capacity:
            state.past_len -= chunk
            state.pool.past_len.fill_(state.past_len)
        with decoder.stream.active():
            shape = (1, length, decoder.model.spec.hidden_size)
            embeds = torch.randn(shape, device="cuda").to(decoder.model.dtype)
            decoder.feed(embeds, [state])
            torch.cuda.synchronize()
            state.past_len -= length
            state.pool.past_len.fill_(state.past_len)
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                decoder.feed(embeds, [state])
                torch.cuda.synchronize()
        found = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
        total = sum(event.self_device_time_total for event in found)
        yield {
            "case": f"{case} at {state.past_len}, all kernels",
            "ms": total / 1e3,
            "launches": sum(event.count for event in found),
        }
        for event in found[:14]:
            yield {
                "case": f"{case}: {event.key[:70]}",
                "ms": event.self_device_time_total / 1e3,
                "share": event.self_device_time_total / total,
                "launches": event.count,
            }


def _memory(context: BenchContext) -> dict[str, Any]:
    import torch

    if context.is_dry:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "used_gib": (total - free) / 2**30,
    }


def _wait(context: BenchContext) -> None:
    import torch

    if not context.is_dry:
        torch.cuda.synchronize()
