"""Execution contexts of an engine: one for each optimization profile, with weights and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longllava_trt.core.errors import InputError, LongLLaVAError
from longllava_trt.runtime.backends.trt.cuda import DeviceBlock
from longllava_trt.runtime.backends.trt.engines import Engines, LoadedEngine

__all__ = ["EngineContexts", "ProfileContext"]


class ProfileContext:
    """An execution context of one optimization profile, with the weights bound."""

    def __init__(self, loaded: LoadedEngine, name: str, context: Any, *, keeps: object) -> None:
        self.name = name
        self.ranges = loaded.stage.profiles[name]
        self.context = context
        # after the context, so that it is dropped after it: TensorRT's runtime cache, for example
        self._keeps = keeps
        for weight, block in loaded.weights.items():
            self.bind(weight, block.address)

    def takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether the shapes that are named are within the profile."""
        return all(
            all(
                low <= size <= high for low, size, high in zip(r.min, shapes[n], r.max, strict=True)
            )
            for n, r in self.ranges.items()
            if n in shapes
        )

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the shapes of the inputs that vary."""
        for name in self.ranges:
            _need(self.context.set_input_shape(name, shapes[name]), f"set_input_shape({name})")

    def bind(self, name: str, address: int) -> None:
        """Set the address of a tensor."""
        _need(self.context.set_tensor_address(name, address), f"set_tensor_address({name})")

    def enqueue(self, stream: Any) -> None:
        """Launch on a stream; does not wait."""
        _need(self.context.execute_async_v3(int(stream)), "execute_async_v3")


class EngineContexts:
    """Contexts of one engine, and their shared memory; they must not run together.

    Each profile has its own context: a graph captured from one stays valid when another runs.

    Args:
        engines: Engines that it belongs to.
        loaded: The engine.
        stream: Stream on which profiles are set.
    """

    def __init__(self, engines: Engines, loaded: LoadedEngine, *, stream: Any) -> None:
        self._engines, self._loaded, self._stream = engines, loaded, stream
        self._bound: dict[str, int] = {}
        names = list(loaded.stage.profiles)
        size = loaded.engine.get_device_memory_size_for_profile_v2
        nbytes = max(int(size(place)) for place in range(len(names)))
        self._block = DeviceBlock(engines.cuda, nbytes)
        self._contexts = {name: self._make(place) for place, name in enumerate(names)}
        self.largest = _largest_dims(loaded)
        """Largest size of each dim that varies, over all profiles."""

    def bind(self, name: str, address: int) -> None:
        """Set the address of a tensor for every profile."""
        self._bound[name] = address
        for context in self._contexts.values():
            context.bind(name, address)

    def choose(self, shapes: Mapping[str, tuple[int, ...]]) -> ProfileContext:
        """Return the context of the narrowest profile that accepts the shapes.

        Raises:
            InputError: If none does.
        """
        # profiles are listed from the widest to the narrowest
        for context in reversed(list(self._contexts.values())):
            if context.takes(shapes):
                return context
        limits = ", ".join(f"{name} up to {size}" for name, size in self.largest.items())
        raise InputError(
            f"{self._loaded.spec.name}: its engine was built for {limits}, got {shapes}; "
            "feed less at once, or build with larger limits"
        )

    def can_be_captured(self, context: ProfileContext) -> bool:
        """Return whether a launch can be part of a CUDA graph; shapes and addresses must be set."""
        if self._engines.tensorrt.flavour == "tensorrt":
            return True  # it has no such question
        return bool(context.context.is_stream_capturable(int(self._stream)))

    def renew(self, context: ProfileContext) -> None:
        """Put a new context in the place of one that cannot be trusted any more."""
        place = list(self._contexts).index(context.name)
        self._contexts[context.name] = self._make(place)
        for name, address in self._bound.items():
            self._contexts[context.name].bind(name, address)

    def _make(self, place: int) -> ProfileContext:
        context = _execution_context(self._engines, self._loaded.engine)
        if context is None:
            raise LongLLaVAError(
                f"{self._loaded.spec.name}: TensorRT makes no execution context; "
                "the lines above say why"
            )
        done = context.set_optimization_profile_async(place, int(self._stream))
        _need(done, "set_optimization_profile_async")
        context.set_device_memory(self._block.address, self._block.nbytes)
        name = list(self._loaded.stage.profiles)[place]
        return ProfileContext(self._loaded, name, context, keeps=self._engines)


def _execution_context(engines: Engines, engine: Any) -> Any:
    """Return an execution context without memory, or None."""
    trt = engines.tensorrt.module
    managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if engines.tensorrt.flavour == "tensorrt":
        return engine.create_execution_context(managed)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(managed)
    # kernels that are replaced in the background would spoil comparisons of two runs, and timings
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.dynamic_shapes_kernel_specialization_strategy = eager
    if engines.runtime_cache is not None:
        engines.runtime_cache.attach(config)
    return engine.create_execution_context(config)


def _largest_dims(loaded: LoadedEngine) -> dict[str, int]:
    largest: dict[str, int] = {}
    specs = {spec.name: spec for spec in loaded.spec.inputs}
    for profile in loaded.stage.profiles.values():
        for name, allowed in profile.items():
            for dim, size in zip(specs[name].shape, allowed.max, strict=True):
                if isinstance(dim, str):
                    largest[dim] = max(size, largest.get(dim, 0))
    return largest


def _need(done: Any, call: str) -> None:
    if not done:
        raise LongLLaVAError(f"{call}: TensorRT refused; the lines above say why")
