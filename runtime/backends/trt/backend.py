"""TensorRT engines on this machine's GPU as a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from longllava_trt.core.engine_record import EngineStage
from longllava_trt.runtime.backends.base import (
    GPU_CHUNK,
    GPU_VISION_BATCH,
    BackendLimits,
    BackendName,
    SequenceState,
    StageSession,
)
from longllava_trt.runtime.backends.trt.engines import Engines

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder

__all__ = ["TrtBackend", "engine_limits"]

Item = TypeVar("Item")


class TrtBackend:
    """TensorRT engines on this machine's GPU.

    Args:
        engines: Engines of the bundle, from `open_engines`.
    """

    name: BackendName = "trt"
    materialises_scores = False

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._decoder: TrtDecoder | None = None

    @cached_property
    def limits(self) -> BackendLimits:
        """Sizes that the engines were built for, from engine.json."""
        return engine_limits(self._engines.record.stages)

    def load_stage(self, stage: str) -> StageSession:
        """Load a stage and its weights."""
        from longllava_trt.runtime.backends.trt.session import TrtSession

        return TrtSession(self._engines, stage)

    def load_decoder(self) -> TrtDecoder:
        """Load the decoder and its weights, once."""
        from longllava_trt.runtime.backends.trt.decoder import TrtDecoder

        if self._decoder is None:
            self._decoder = TrtDecoder(self._engines)
        return self._decoder

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return a new state on the device."""
        return self.load_decoder().new_state(capacity=capacity)

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items; the next is made at the same time, on a stream of its own."""
        from longllava_trt.runtime.inputs.prefetch import prefetch

        return prefetch(items)


def engine_limits(stages: Mapping[str, EngineStage]) -> BackendLimits:
    """Return the limits of recorded engines; a stage without an engine sets no limit."""
    decoder, vision = stages.get("decoder"), stages.get("vision")
    chunk = None if decoder is None else _largest(decoder, "inputs_embeds", axis=1)
    batch = None if vision is None else _largest(vision, "pixel_values", axis=0)
    return BackendLimits(
        capacity=None if decoder is None else _capacity(decoder),
        longest_chunk=chunk,
        largest_vision_batch=batch,
        preferred_chunk=min(GPU_CHUNK, chunk or GPU_CHUNK),
        preferred_vision_batch=min(GPU_VISION_BATCH, batch or GPU_VISION_BATCH),
    )


def _capacity(decoder: EngineStage) -> int | None:
    specs = {spec.name: spec for spec in decoder.inputs}
    caches = [specs[state.input].shape[2] for state in decoder.states if state.mode == "alias"]
    return min((size for size in caches if isinstance(size, int)), default=None)


def _largest(stage: EngineStage, name: str, *, axis: int) -> int | None:
    """Return the largest size of one axis of an input, over all profiles."""
    return max((p[name].max[axis] for p in stage.profiles.values() if name in p), default=None)
