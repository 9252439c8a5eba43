"""Decoders of the published sizes: prefill, and decode at depth. Weights are random, so only time and memory mean anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.lane import Lane
from benchmarks.gpu.wheels import use_wheels

if TYPE_CHECKING:
    from longllava_trt.engine_record import EngineWeight
    from runtime.cuda import CudaMemory, DeviceBlock
    from runtime.trt_decoder import TrtDecoder

__all__ = ["scale"]

_DEPTHS = (4096, 16384, 100_000, 144_000)
_STEPS = 32
_PIECE_BYTES = 2**28


def scale(lane: Lane) -> Iterator[dict[str, Any]]:
    """Yield a row a decoder and depth."""
    folders = [] if lane.scale is None else sorted(lane.scale.glob("*/engine.json"))
    if not folders or lane.is_dry:
        yield {"case": "not run: name a folder of engines with --scale"}
        return
    if lane.wheels is not None:
        use_wheels(lane.wheels)
    from runtime.engines import open_engines
    from runtime.trt_decoder import TrtDecoder

    for folder in (path.parent for path in folders):
        engines = open_engines(folder, folder=folder, read_weights=_random_weights)
        decoder = TrtDecoder(engines)
        yield {"case": f"{folder.name} loaded", "memory_gib": _used_gib()}
        for row in _measure(decoder):
            yield {**row, "case": f"{folder.name}, {row['case']}"}
        del decoder, engines


def _random_weights(
    _: Path, weights: Sequence[EngineWeight], memory: CudaMemory, __: object
) -> dict[str, DeviceBlock]:
    """Fill the device with small random numbers, the same ones again and again."""
    import torch

    from runtime.cuda import Cuda

    small = torch.randn(_PIECE_BYTES // 2, device="cuda") * 0.02
    pieces = {
        "bfloat16": small.bfloat16(),
        "float32": small[: _PIECE_BYTES // 4].clone(),
        "int8": torch.randint(-127, 128, (_PIECE_BYTES,), device="cuda", dtype=torch.int8),
        "uint8": torch.randint(0, 256, (_PIECE_BYTES,), device="cuda", dtype=torch.uint8),
    }
    del small
    torch.cuda.synchronize()
    cuda = Cuda()
    stream, found = cuda.stream(), {}
    for weight in weights:
        nbytes = int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize
        block = found[weight.name] = memory.allocate(nbytes)
        source = pieces[weight.dtype].data_ptr()
        for place in range(0, nbytes, _PIECE_BYTES):
            length = min(_PIECE_BYTES, nbytes - place)
            cuda.copy(block.address + place, source, length, stream=stream)
    cuda.synchronize(stream)
    pieces.clear()
    torch.cuda.empty_cache()
    return found


def _measure(decoder: TrtDecoder) -> Iterator[dict[str, Any]]:
    """Read a prompt chunk by chunk; at each depth stop to take some decode steps, and go on where it was."""
    state = decoder.new_state()
    spec, chunk = decoder.embeds_spec, decoder.largest["seq_len"]
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, chunk, int(spec.shape[2]))).astype(spec.dtype)
    decoder.step(embeds[:, :64], state)  # whatever is compiled at the first call
    state.past_len, seconds = 0, 0.0
    for depth in (d for d in _DEPTHS if d + _STEPS + 1 <= state.capacity):
        while state.past_len < depth:
            begin = time.perf_counter()
            decoder.step(embeds[:, : min(chunk, depth - state.past_len)], state)
            seconds += time.perf_counter() - begin
        mark = state.mark()
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
            "memory_gib": _used_gib(),
            "graphs": str(decoder.graphs_are_right),
        }


def _used_gib() -> float:
    import torch

    free, total = torch.cuda.mem_get_info()
    return float(total - free) / 2**30
