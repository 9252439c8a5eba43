"""The part of the CUDA runtime that engines need: memory, streams, events, graphs. No PyTorch.

Knows nothing about TensorRT and models. Addresses are integers; a call that fails raises an error
with CUDA's own words.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import LongLLaVAError, MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["CaptureError", "Cuda", "CudaMemory", "DeviceBlock"]

_NO_DEVICE = {
    "cudaErrorInsufficientDriver": "its driver is missing, or older than cuda-python",
    "cudaErrorNoDevice": "the driver finds none",
    "cudaErrorInitializationError": "the driver does not start",
}
_NON_BLOCKING = 1
_WITHOUT_TIMING = 2


class CaptureError(LongLLaVAError):
    """Error of work that cannot become a CUDA graph; it may still be launched."""


class DeviceBlock:
    """Memory on the device; freed when nothing refers to it any more.

    Args:
        cuda: Device that has the memory.
        nbytes: Size in bytes.
    """

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = cuda.malloc(nbytes)
        weakref.finalize(self, cuda.free, self.address)


class Cuda:
    """The first GPU of this process.

    Args:
        runtime: The module `cuda.bindings.runtime`, or one like it.

    Raises:
        MissingDependencyError: If cuda-python is not installed, or there is no driver or no GPU.
    """

    def __init__(self, runtime: Any | None = None) -> None:
        self._runtime = runtime or _import_runtime()
        status, count = self._runtime.cudaGetDeviceCount()
        name = self._name(status)
        if name in _NO_DEVICE or not count:
            why = _NO_DEVICE.get(name, "there is none")
            raise MissingDependencyError(
                f"engines: need an NVIDIA GPU and its driver, got {name} ({why}); "
                "run with --backend ort, or on a machine that has a GPU"
            )
        self._check("cudaGetDeviceCount", status)

    def malloc(self, nbytes: int) -> int:
        """Return the address of new memory on the device."""
        return int(self._call("cudaMalloc", max(nbytes, 1)))

    def device_name(self) -> str:
        """Return what the GPU is called, such as `NVIDIA GeForce RTX 4090`."""
        name: bytes = self._call("cudaGetDeviceProperties", 0).name
        return name.split(b"\0")[0].decode("utf-8", "replace")

    def free_bytes(self) -> int:
        """Return how much memory of the device is free."""
        return int(self._call("cudaMemGetInfo"))

    def free(self, address: int) -> None:
        """Free memory on the device; waits for the work that uses it."""
        self._runtime.cudaFree(address)

    def pinned(self, nbytes: int) -> Bytes:
        """Return pinned host memory, which the device reads and writes; freed with the array.

        Returns:
            [nbytes], uint8.
        """
        address = int(self._call("cudaMallocHost", max(nbytes, 1)))
        block = (ctypes.c_uint8 * nbytes).from_address(address)
        weakref.finalize(block, self._runtime.cudaFreeHost, address)
        return np.ctypeslib.as_array(block)

    def stream(self) -> Any:
        """Return a new stream, which does not wait for other streams."""
        return self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def synchronize(self, stream: Any) -> None:
        """Wait until all work on a stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def copy(self, target: int, source: int, nbytes: int, *, stream: Any) -> None:
        """Begin a copy between host or device addresses; it is fast if host memory is pinned.

        Both memories must live until it is done.
        """
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, nbytes, kind, stream)

    def zero(self, block: DeviceBlock, *, stream: Any) -> None:
        """Begin to fill a block with zeros."""
        self._call("cudaMemsetAsync", block.address, 0, block.nbytes, stream)

    def record(self, stream: Any) -> Callable[[], None]:
        """Return a function that waits for the work given to a stream so far; call it once."""
        event = self._call("cudaEventCreateWithFlags", _WITHOUT_TIMING)
        self._call("cudaEventRecord", event, stream)

        def wait() -> None:
            self._call("cudaEventSynchronize", event)
            self._call("cudaEventDestroy", event)

        return wait

    def capture(self, launch: Callable[[], None], *, stream: Any) -> Callable[[], None]:
        """Capture the work that ``launch`` gives to a stream; return a function that replays it.

        Raises:
            CaptureError: If it cannot be captured; the stream takes other work again.
        """
        try:
            executable = self._capture(launch, stream)
        except LongLLaVAError as err:
            raise CaptureError(str(err)) from err

        def replay() -> None:
            self._call("cudaGraphLaunch", executable, stream)

        weakref.finalize(replay, self._runtime.cudaGraphExecDestroy, executable)
        return replay

    def _capture(self, launch: Callable[[], None], stream: Any) -> Any:
        """Return an executable graph."""
        # in a stricter mode memory that some finalizer frees meanwhile would end the capture
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            launch()
        finally:
            # a capture that failed must be ended too, or the stream accepts no other work
            status, graph = self._runtime.cudaStreamEndCapture(stream)
        self._check("cudaStreamEndCapture", status)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, name)(*arguments)
        self._check(name, status)
        return values[0] if values else None

    def _check(self, name: str, status: Any) -> None:
        if int(status):
            raise LongLLaVAError(
                f"{name}: CUDA returned {self._name(status)}"
                + ("; use less: --max-context, --chunk" if "Memory" in self._name(status) else "")
            )

    def _name(self, status: Any) -> str:
        name: bytes = self._runtime.cudaGetErrorName(status)[1]
        return name.decode()


class CudaMemory:
    """Memory for weights: a `WeightMemory` on the device.

    Args:
        cuda: Device that has the memory.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()

    def allocate(self, nbytes: int) -> DeviceBlock:
        """Return memory for one weight."""
        return DeviceBlock(self._cuda, nbytes)

    def staging(self, nbytes: int) -> Bytes:
        """Return pinned memory to read into."""
        return self._cuda.pinned(nbytes)

    def write(self, buffer: DeviceBlock, place: int, block: Bytes) -> Callable[[], None]:
        """Begin to copy a block to byte `place` of a weight; see `WeightMemory.write`."""
        source = block.__array_interface__["data"][0]
        self._cuda.copy(buffer.address + place, source, len(block), stream=self._stream)
        return self._cuda.record(self._stream)


def _import_runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as err:
        raise MissingDependencyError(
            f"engines: cuda-python is not installed ({err}); pip install 'longllava-trt[trt-rtx]'"
        ) from err
    return runtime
