"""A bundle's engines through the runtime's own sessions: do they load, do they agree with themselves, how long they take.

Chunks of any size must give what single steps give, and replayed steps what launched ones give. Times are the host's,
copies to and from the device included, which is what a user waits for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.compare import attempt
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.wheels import use_wheels
from longllava_trt.core.engine_record import engine_folders

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
    from longllava_trt.runtime.backends.trt.engines import Engines

__all__ = ["stages"]

_STEPS = 64
_ROUNDING = 0.05
"""Of bfloat16, over a whole decoder: what two orders of the same sums may differ by, of the largest logit."""


def stages(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a stage; then chunks against steps, and the decoder's times."""
    if context.bundle is None or context.is_dry:
        yield {"case": "not run: name a bundle with engines with --bundle"}
        return
    if context.wheels is not None:
        use_wheels(context.wheels)
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
    from longllava_trt.runtime.backends.trt.engines import open_engines

    for folder in engine_folders(context.bundle):
        engines = open_engines(context.bundle, folder=folder, on_any_gpu=True)
        for name in ("vision", "projector", "embed"):
            if name in engines.record.stages:
                yield attempt(f"{folder.name} {name}", lambda e=engines, n=name: _stage(e, n))  # type: ignore[misc]
        if "decoder" in engines.record.stages:
            decoder = TrtDecoder(engines)
            yield attempt(f"{folder.name} decoder", lambda d=decoder: _agreement(d))  # type: ignore[misc]
            for seq_len in (1, 16, 64, 256):
                case = f"{folder.name} decoder, {seq_len} tokens"
                yield attempt(case, lambda d=decoder, n=seq_len: _decoder_time(d, n))  # type: ignore[misc]


def _stage(engines: Engines, name: str) -> dict[str, Any]:
    from longllava_trt.runtime.backends.trt.session import TrtSession

    session = TrtSession(engines, name)
    rng, dims = np.random.default_rng(0), session.largest
    inputs = {}
    for spec in session.spec.inputs:
        shape = tuple(dims[d] if isinstance(d, str) else d for d in spec.shape)
        drawn = rng.integers(0, 100, shape) if spec.dtype == "int64" else rng.standard_normal(shape)
        inputs[spec.name] = drawn.astype(spec.dtype)
    found = session.run(inputs)
    ok = all(np.isfinite(value.astype(np.float32)).all() for value in found.values())
    return {"ok": ok, **dims, "ms": _median_ms(lambda: session.run(inputs))}


def _embeds(decoder: TrtDecoder, seq_len: int) -> Any:
    spec = decoder.embeds_spec
    drawn = np.random.default_rng(seq_len).standard_normal((1, seq_len, int(spec.shape[2])))
    return drawn.astype(spec.dtype)


def _agreement(decoder: TrtDecoder) -> dict[str, Any]:
    """Feed the same positions whole, in pieces and one by one."""
    embeds = _embeds(decoder, 40)
    ends = []
    for sizes in ([40], [17, 2, 20, 1], [1] * 40):
        state = decoder.new_state()
        for piece in np.split(embeds, np.cumsum(sizes)[:-1], axis=1):
            logits = decoder.step(piece, state)
        ends.append(logits.astype(np.float64))
    worst = max(float(np.abs(end - ends[0]).max() / np.abs(ends[0]).max()) for end in ends[1:])
    ok = bool(np.isfinite(ends).all()) and worst < _ROUNDING
    return {"ok": ok, "error": worst, "graphs": str(decoder.graphs_are_right)}


def _decoder_time(decoder: TrtDecoder, seq_len: int) -> dict[str, Any]:
    state, embeds = decoder.new_state(), _embeds(decoder, seq_len)
    mark = state.snapshot()

    def run() -> None:
        if state.past_len + seq_len > state.capacity:
            state.restore(mark)
        decoder.step(embeds, state)

    ms = _median_ms(run)
    return {"ms": ms, "tokens_per_s": 1e3 * seq_len / ms}


def _median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        call()
    for _ in range(_STEPS):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)
