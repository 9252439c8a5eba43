"""One stage of a bundle as a TensorRT engine: the same contract as `OnnxSession`.

Copies in and out are here too, which all stages share; contexts are in `contexts.py`. The decoder's
carried state is in `state.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.runtime.backends.trt.contexts import EngineContexts
from longllava_trt.runtime.backends.trt.cuda import DeviceBlock
from longllava_trt.runtime.backends.trt.engines import Engines
from longllava_trt.runtime.backends.trt.fixed_sizes import call_sizes, cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StagedTensor", "TrtSession"]


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
        self._contexts = EngineContexts(engines, loaded, stream=self._stream)
        self.largest = self._contexts.largest
        """Largest size of each dim that varies."""
        self._varies, self._sizes = _varying(self.largest, engines)
        self._staged = {
            spec.name: StagedTensor(engines, spec, largest=self.largest, stream=self._stream)
            for spec in (*self.spec.inputs, *self.spec.outputs)
        }
        for name, tensor in self._staged.items():
            self._contexts.bind(name, tensor.address)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on arrays of the contract's names, shapes and dtypes: once, or in fixed sizes.

        Raises:
            ContractError: If an input is not what the stage declares.
            InputError: If it is larger than the engine was built for.
        """
        dims: dict[str, int] = {}
        for spec in self.spec.inputs:
            value = inputs[spec.name]
            spec.check(value.shape, str(value.dtype), dims=dims, where=self.spec.name)
        pieces = cut(dims.get(self._varies, 1), self._sizes)
        if len(pieces) == 1:
            return self._run(inputs, dims)
        parts, begin = [], 0
        for size in pieces:
            part = {
                spec.name: inputs[spec.name][_slice(spec, self._varies, begin, size)]
                for spec in self.spec.inputs
            }
            parts.append(self._run(part, dims | {self._varies: size}))
            begin += size
        return {
            spec.name: np.concatenate(
                [part[spec.name] for part in parts], axis=spec.shape.index(self._varies)
            )
            for spec in self.spec.outputs
        }

    def warm_up(self) -> None:
        """Run once in each size that calls are made in, so that no user waits for its kernels."""
        for size in self._sizes or (1,):
            dims = dict.fromkeys(self.largest, size)
            self.run({s.name: np.zeros(_shape(s, dims), s.dtype) for s in self.spec.inputs})

    def _run(
        self, inputs: Mapping[str, NDArray[Any]], dims: Mapping[str, int]
    ) -> dict[str, NDArray[Any]]:
        shapes = {spec.name: inputs[spec.name].shape for spec in self.spec.inputs}
        context = self._contexts.choose(shapes)
        for name in shapes:
            self._staged[name].write(inputs[name])
        context.shape(shapes)
        context.enqueue(self._stream)
        results = {s.name: self._staged[s.name].begin_read(dims) for s in self.spec.outputs}
        self._cuda.synchronize(self._stream)
        return {name: staged.copy() for name, staged in results.items()}


def _varying(largest: Mapping[str, int], engines: Engines) -> tuple[str, tuple[int, ...]]:
    """Return the dim along which calls are cut, and the sizes of the pieces."""
    if len(largest) != 1:
        return "", ()
    ((name, size),) = largest.items()
    return name, call_sizes(name, size) if engines.compiles_new_shapes else ()


def _slice(spec: TensorSpec, dim: str, begin: int, size: int) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) if d == dim else slice(None) for d in spec.shape)


def _shape(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dims[d] if isinstance(d, str) else d for d in spec.shape)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
