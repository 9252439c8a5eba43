"""What one sequence carries between calls of the decoder's engine, on the device.

Has the methods of `DecoderState`. Where engine.json says `alias`, one buffer is input and output; where it says
`double-buffer`, two swap, since a kernel may read a state after it has begun to write the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.runtime.backends.ort.decoder import StateSnapshot
from longllava_trt.runtime.backends.trt.cuda import Cuda, DeviceBlock
from longllava_trt.runtime.backends.trt.engines import LoadedEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TrtDecoderState"]


class TrtDecoderState:
    """Everything one sequence carries. Room for all positions of the engine is there from the start.

    Args:
        cuda: Whose memory.
        loaded: The decoder's engine.
        stream: Where copies are enqueued.
    """

    def __init__(self, cuda: Cuda, loaded: LoadedEngine, *, stream: Any) -> None:
        self.past_len = 0
        """Positions fed so far."""
        self.graphs: dict[int, Callable[[], None]] = {}
        """A captured decode step for each way round that the buffers can be."""
        self.turn = 0
        """Which way round they are: 0 or 1."""
        self._cuda, self._stream = cuda, stream
        self._specs = {spec.name: spec for spec in loaded.spec.inputs}
        self._states = loaded.stage.states
        caches = [self._specs[s.input] for s in self._states if s.mode == "alias"]
        self.capacity = min((int(spec.shape[2]) for spec in caches), default=2**31 - 1)
        self._current = {s.input: self._zeros(s.input) for s in self._states}
        twice = [s.input for s in self._states if s.mode == "double-buffer"]
        self._spare = {name: self._zeros(name) for name in twice}

    def bindings(self) -> dict[str, int]:
        """Return where inputs and outputs of the next call lie, by name."""
        found = {s.input: self._current[s.input].address for s in self._states}
        for state in self._states:
            block = self._spare.get(state.input, self._current[state.input])
            found[state.output] = block.address
        return found

    def advance(self, seq_len: int) -> None:
        """Make the state just written the current one."""
        self.past_len += seq_len
        self.turn ^= 1
        for name, written in self._spare.items():
            self._spare[name], self._current[name] = self._current[name], written

    def reserve(self, capacity: int) -> None:
        """Nothing to do: what the engine has room for is there, and `make_room` refuses more."""

    def make_room(self, seq_len: int) -> None:
        """Refuse positions that do not fit.

        Raises:
            InputError: If they exceed what the engine was built for.
        """
        if self.past_len + seq_len > self.capacity:
            raise InputError(
                f"decoder: {self.past_len} positions fed and {seq_len} more exceed the engine's {self.capacity}; "
                "shorten the prompt, show fewer images, or build with a larger --max-context"
            )

    def snapshot(self) -> StateSnapshot:
        """Return the present point; copies the recurrent states alone."""
        return StateSnapshot(self.past_len, {name: self._read(name) for name in self._spare})

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a point of this sequence; keys and values after it are given up, and overwritten later."""
        for name, array in mark.recurrent.items():
            self._write(name, array)
        self.past_len = mark.past_len

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state of so many positions, as `state_dict` returns it."""
        self.past_len = 0
        self.make_room(past_len)
        for name, array in arrays:
            self._write(name, array)
        self.past_len = past_len

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return the state by input name, keys and values up to `past_len` only; always copies, off the device."""
        del copy
        return {name: self._read(name) for name in self._current}

    def _read(self, name: str) -> NDArray[Any]:
        """Return a state, of keys and values the positions that were fed."""
        spec, is_cache = self._specs[name], name not in self._spare
        shape = [int(d) for d in spec.shape]
        if is_cache:
            shape[2] = self.past_len
        array = np.empty(shape, spec.dtype)
        for host, device, nbytes in _runs(array, self._current[name].address, spec, is_cache):
            self._cuda.copy(host, device, nbytes, stream=self._stream)
        self._cuda.synchronize(self._stream)
        return array

    def _write(self, name: str, array: NDArray[Any]) -> None:
        spec, is_cache = self._specs[name], name not in self._spare
        held = np.ascontiguousarray(array, spec.dtype)
        for host, device, nbytes in _runs(held, self._current[name].address, spec, is_cache):
            self._cuda.copy(device, host, nbytes, stream=self._stream)
        self._cuda.synchronize(self._stream)

    def _zeros(self, name: str) -> DeviceBlock:
        spec = self._specs[name]
        shape = [int(d) for d in spec.shape]
        block = DeviceBlock(self._cuda, math.prod(shape) * np.dtype(spec.dtype).itemsize)
        # attention weighs positions beyond the last with zero, and 0 * NaN is NaN
        self._cuda.zero(block, stream=self._stream)
        return block


def _runs(
    array: NDArray[Any], device: int, spec: TensorSpec, is_cache: bool
) -> Iterable[tuple[int, int, int]]:
    """Yield host address, device address and length of what lies together; each head of a cache has its own room."""
    host: int = array.__array_interface__["data"][0]
    if not is_cache:
        yield host, device, array.nbytes
        return
    _, heads, capacity, head_dim = (int(d) for d in spec.shape)
    used = array.nbytes // heads
    for head in range(heads):
        place = head * capacity * head_dim * array.itemsize
        yield host + head * used, device + place, used
