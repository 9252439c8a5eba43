"""One stage of a bundle as a TensorRT engine: the same contract as `OnnxSession`.

Parts that all stages share: profiles, contexts, memory, copies in and out. The decoder's carried
state is in `state.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.errors import InputError, LongLLaVAError
from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.runtime.backends.trt.cuda import DeviceBlock
from longllava_trt.runtime.backends.trt.engines import Engines, LoadedEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ProfileContext",
    "StagedTensor",
    "TrtSession",
    "choose",
    "largest_dims",
    "make_contexts",
]


class StagedTensor:
    """A tensor on the device with pinned memory beside it, large enough for every profile.

    Args:
        engines: Engines on the same device.
        spec: Contract of the tensor.
        largest: Size of each dim name.
        stream: Stream that copies are enqueued on.
    """

    def __init__(
        self, engines: Engines, spec: TensorSpec, *, largest: Mapping[str, int], stream: Any
    ) -> None:
        self.spec = spec
        self._cuda, self._stream = engines.cuda, stream
        self._dtype = np.dtype(spec.dtype)
        shape = _shape(spec, largest)
        self._block = DeviceBlock(engines.cuda, math.prod(shape) * self._dtype.itemsize)
        self._host = engines.cuda.pinned(self._block.nbytes)

    @property
    def address(self) -> int:
        """Address on the device."""
        return self._block.address

    def write(self, value: NDArray[Any]) -> None:
        """Begin to copy a value, of the contract's shape and dtype, to the device."""
        staged = self._host[: value.nbytes]
        staged.view(self._dtype).reshape(value.shape)[...] = value
        self._copy(self.address, _address(staged), value.nbytes)

    def begin_read(self, dims: Mapping[str, int]) -> NDArray[Any]:
        """Begin to copy the result back.

        Returns:
            Array of the contract's shape and dtype. It holds the result when the stream is done,
            and until the next run.
        """
        shape = _shape(self.spec, dims)
        staged = self._host[: math.prod(shape) * self._dtype.itemsize]
        self._copy(_address(staged), self.address, staged.nbytes)
        return staged.view(self._dtype).reshape(shape)

    def _copy(self, target: int, source: int, nbytes: int) -> None:
        self._cuda.copy(target, source, nbytes, stream=self._stream)


class ProfileContext:
    """An execution context of one optimization profile, with the weights bound."""

    def __init__(self, loaded: LoadedEngine, name: str, context: Any) -> None:
        self.name = name
        self.ranges = loaded.stage.profiles[name]
        self.context = context
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


def make_contexts(
    engines: Engines, loaded: LoadedEngine, *, stream: Any
) -> tuple[dict[str, ProfileContext], DeviceBlock]:
    """Return a context for each profile, and their shared memory; they must not run together.

    Each profile has its own context: a graph captured from one stays valid when another runs.
    """
    names = list(loaded.stage.profiles)
    size = loaded.engine.get_device_memory_size_for_profile_v2
    block = DeviceBlock(engines.cuda, max(int(size(place)) for place in range(len(names))))
    contexts = {}
    for place, name in enumerate(names):
        context = _make_context(engines, loaded.engine)
        if context is None:
            raise LongLLaVAError(
                f"{loaded.spec.name}: TensorRT makes no execution context; the lines above say why"
            )
        _need(
            context.set_optimization_profile_async(place, int(stream)), "set_optimization_profile"
        )
        context.set_device_memory(block.address, block.nbytes)
        contexts[name] = ProfileContext(loaded, name, context)
    return contexts, block


def _make_context(engines: Engines, engine: Any) -> Any:
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
    return engine.create_execution_context(config)


class TrtSession:
    """A loaded stage without carried state.

    Args:
        engines: Engines of the bundle.
        stage: Name of the stage.
    """

    def __init__(self, engines: Engines, stage: str) -> None:
        loaded = engines.load(stage)
        self.spec = loaded.spec
        self._cuda, self._stream = engines.cuda, engines.cuda.stream()
        self._contexts, self._memory = make_contexts(engines, loaded, stream=self._stream)
        self._loaded = loaded
        self.largest = largest_dims(loaded)
        """Largest size of each dim that varies."""
        self._staged = {
            spec.name: StagedTensor(engines, spec, largest=self.largest, stream=self._stream)
            for spec in (*self.spec.inputs, *self.spec.outputs)
        }
        for context in self._contexts.values():
            for name, tensor in self._staged.items():
                context.bind(name, tensor.address)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays of the contract's names, shapes and dtypes.

        Raises:
            ContractError: If an input is not what the stage declares.
            InputError: If it is larger than the engine was built for.
        """
        dims: dict[str, int] = {}
        for spec in self.spec.inputs:
            value = inputs[spec.name]
            spec.check(value.shape, str(value.dtype), dims=dims, where=self.spec.name)
        shapes = {spec.name: inputs[spec.name].shape for spec in self.spec.inputs}
        context = choose(self._contexts, shapes, largest=self.largest, where=self.spec.name)
        for name in shapes:
            self._staged[name].write(inputs[name])
        context.shape(shapes)
        context.enqueue(self._stream)
        results = {s.name: self._staged[s.name].begin_read(dims) for s in self.spec.outputs}
        self._cuda.synchronize(self._stream)
        return {name: staged.copy() for name, staged in results.items()}


def choose(
    contexts: Mapping[str, ProfileContext],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    largest: Mapping[str, int],
    where: str,
) -> ProfileContext:
    """Return the context of the narrowest profile that accepts the shapes.

    Raises:
        InputError: If none does.
    """
    # profiles are listed from the widest to the narrowest
    for context in reversed(list(contexts.values())):
        if context.takes(shapes):
            return context
    limits = ", ".join(f"{name} up to {size}" for name, size in largest.items())
    raise InputError(
        f"{where}: its engine was built for {limits}, got {shapes}; "
        "feed less at once, or build with larger limits"
    )


def largest_dims(loaded: LoadedEngine) -> dict[str, int]:
    """Return the largest size of each dim that varies, over all profiles."""
    largest: dict[str, int] = {}
    specs = {spec.name: spec for spec in loaded.spec.inputs}
    for profile in loaded.stage.profiles.values():
        for name, allowed in profile.items():
            for dim, size in zip(specs[name].shape, allowed.max, strict=True):
                if isinstance(dim, str):
                    largest[dim] = max(size, largest.get(dim, 0))
    return largest


def _shape(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dims[d] if isinstance(d, str) else d for d in spec.shape)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _need(done: Any, call: str) -> None:
    if not done:
        raise LongLLaVAError(f"{call}: TensorRT refused; the lines above say why")
