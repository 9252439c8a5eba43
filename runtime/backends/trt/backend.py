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
from longllava_trt.runtime.backends.trt.fixed_sizes import token_sizes

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
    from longllava_trt.runtime.backends.trt.session import TrtSession

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
        self._sessions: dict[str, TrtSession] = {}
        self._decoder: TrtDecoder | None = None

    @cached_property
    def limits(self) -> BackendLimits:
        """Sizes that the engines were built for, from engine.json."""
        return engine_limits(
            self._engines.record.stages, in_fixed_sizes=self._engines.compiles_new_shapes
        )

    def load_stage(self, stage: str) -> StageSession:
        """Load a stage and its weights, once."""
        return self._session(stage)

    def load_decoder(self) -> TrtDecoder:
        """Load the decoder and its weights, once."""
        from longllava_trt.runtime.backends.trt.decoder import TrtDecoder

        if self._decoder is None:
            self._decoder = TrtDecoder(self._engines)
        return self._decoder

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return a new state on the device."""
        return self.load_decoder().new_state(capacity=capacity)

    def warm_up(self) -> None:
        """Load every stage and run it in each size that calls have; keep the kernels compiled for them.

        For before the first request: afterwards none waits for a kernel to be compiled.
        """
        for stage in self._engines.record.stages:
            if stage == "decoder":
                self.load_decoder().warm_up()
            else:
                self._session(stage).warm_up()
        self._engines.keep_kernels()

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items; the next is made at the same time, on a stream of its own."""
        from longllava_trt.runtime.inputs.prefetch import prefetch

        return prefetch(items)

    def _session(self, stage: str) -> TrtSession:
        from longllava_trt.runtime.backends.trt.session import TrtSession

        if stage not in self._sessions:
            self._sessions[stage] = TrtSession(self._engines, stage)
        return self._sessions[stage]


def engine_limits(
    stages: Mapping[str, EngineStage], *, in_fixed_sizes: bool = False
) -> BackendLimits:
    """Return the limits of recorded engines; a stage without an engine sets no limit.

    Args:
        stages: Stages by name.
        in_fixed_sizes: Whether the decoder cuts what it is fed into fixed sizes.
    """
    decoder, vision = stages.get("decoder"), stages.get("vision")
    chunk = None if decoder is None else _largest(decoder, "inputs_embeds", axis=1)
    batch = None if vision is None else _largest(vision, "pixel_values", axis=0)
    return BackendLimits(
        capacity=None if decoder is None else _capacity(decoder),
        longest_chunk=chunk,
        largest_vision_batch=batch,
        chunk_sizes=token_sizes(chunk) if in_fixed_sizes and chunk else (),
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
