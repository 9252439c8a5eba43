"""Decoders of the published sizes: prefill, and decode at depth. Weights are random, so only time and memory mean anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.dummy_weights import bundles_without_weights, open_with_dummy_weights, used_gib
from benchmarks.gpu.wheels import use_wheels

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder

__all__ = ["scale"]

_DEPTHS = (4096, 16384, 100_000, 144_000)
_STEPS = 32


def scale(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a decoder and depth."""
    bundles = bundles_without_weights(context.scale, engines=True)
    if not bundles or context.is_dry:
        yield {"case": "not run: name a folder of bundles of full size with --scale"}
        return
    if context.wheels is not None:
        use_wheels(context.wheels)
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder

    for bundle in bundles:
        decoder = TrtDecoder(open_with_dummy_weights(bundle))
        yield {"case": f"{bundle.name} loaded", "memory_gib": used_gib()}
        for row in _measure(decoder):
            yield {**row, "case": f"{bundle.name}, {row['case']}"}
        del decoder


def _measure(decoder: TrtDecoder) -> Iterator[dict[str, Any]]:
    """Read a prompt chunk by chunk; at each depth stop to take some decode steps, and go on where it was."""
    state = decoder.new_state()
    spec, chunk = decoder.embeds_spec, decoder.largest["seq_len"]
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, chunk, int(spec.shape[2]))).astype(spec.dtype)
    start, seconds = state.snapshot(), 0.0
    decoder.step(embeds[:, :64], state)  # whatever is compiled at the first call
    state.restore(start)
    for depth in (d for d in _DEPTHS if d + _STEPS + 1 <= state.capacity):
        while state.past_len < depth:
            begin = time.perf_counter()
            decoder.step(embeds[:, : min(chunk, depth - state.past_len)], state)
            seconds += time.perf_counter() - begin
        mark = state.snapshot()
        decoder.step(embeds[:, :1], state)
        begin = time.perf_counter()
        for _ in range(_STEPS - 1):
            decoder.step(embeds[:, :1], state)
        each = (time.perf_counter() - begin) / (_STEPS - 1)
        state.restore(mark)
        yield {
            "case": f"{depth} tokens",
            "prefill_s": seconds,
            "prefill_tokens_per_s": depth / seconds,
            "decode_ms": 1e3 * each,
            "decode_tokens_per_s": 1 / each,
            "memory_gib": used_gib(),
            "graphs": str(decoder.graphs_are_right),
        }
