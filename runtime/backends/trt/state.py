"""State that one sequence carries between calls of the decoder's engine, on the device.

Has the methods of `DecoderState`. If engine.json says `alias`, one buffer is input and output; if
it says `double-buffer`, two take turns, since a kernel may read a state after it has begun to write
the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.runtime.backends.base import StateSnapshot
from longllava_trt.runtime.backends.trt.cuda import Cuda, DeviceBlock
from longllava_trt.runtime.backends.trt.engines import LoadedEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TrtDecoderState"]


class _Live(NamedTuple):
    """Contents of a state at one moment; replaced as a whole."""

    past_len: int
    turn: int


class TrtDecoderState:
    """State of one sequence. Memory for all positions of the engine is allocated at the start.

    Every change is published in one assignment, so that a call that is broken off anywhere leaves
    the state as it was.

    Args:
        cuda: Device that has the memory.
        loaded: The decoder's engine.
        stream: Stream that copies are enqueued on.
    """

    def __init__(self, cuda: Cuda, loaded: LoadedEngine, *, stream: Any) -> None:
        self.graphs: dict[int, Callable[[], None]] = {}
        """Captured decode steps, one for each order of the double buffers."""
        self._live = _Live(0, 0)
        self._cuda, self._stream = cuda, stream
        self._specs = {spec.name: spec for spec in loaded.spec.inputs}
        self._states = loaded.stage.states
        caches = [self._specs[s.input] for s in self._states if s.mode == "alias"]
        self.capacity = min((int(spec.shape[2]) for spec in caches), default=2**31 - 1)
        """Positions there is room for."""
        self._caches = {s.input: self._zeros(s.input) for s in self._states if s.mode == "alias"}
        twice = [s.input for s in self._states if s.mode == "double-buffer"]
        self._rewritten = tuple({name: self._zeros(name) for name in twice} for _ in range(2))

    @property
    def past_len(self) -> int:
        """Positions fed so far."""
        return self._live.past_len

    @property
    def turn(self) -> int:
        """Index of the current set of double buffers: 0 or 1."""
        return self._live.turn

    def bindings(self) -> dict[str, int]:
        """Return the addresses of the next call's inputs and outputs, by name."""
        turn = self._live.turn
        current, spare = self._rewritten[turn], self._rewritten[1 - turn]
        found = {}
        for state in self._states:
            both = self._caches.get(state.input)
            found[state.input] = (both or current[state.input]).address
            found[state.output] = (both or spare[state.input]).address
        return found

    def advance(self, seq_len: int) -> None:
        """Make the state just written the current one."""
        past_len, turn = self._live
        self._live = _Live(past_len + seq_len, 1 - turn)

    def reserve(self, capacity: int) -> None:
        """Do nothing: all memory is allocated already, and `make_room` refuses more positions."""

    def make_room(self, seq_len: int) -> None:
        """Raise an error if positions do not fit.

        Raises:
            InputError: If they exceed the capacity of the engine.
        """
        if self.past_len + seq_len > self.capacity:
            raise InputError(
                f"decoder: {self.past_len} positions fed and {seq_len} more exceed the engine's "
                f"{self.capacity}; shorten the prompt, show fewer images, or build with a larger "
                "--max-context"
            )

    def snapshot(self) -> StateSnapshot:
        """Return a snapshot of the present state; copies only conv and recurrent states."""
        past_len, turn = self._live
        return StateSnapshot(past_len, {n: self._read(n, turn) for n in self._rewritten[turn]})

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a snapshot of this sequence; later keys and values will be overwritten."""
        turn = 1 - self._live.turn
        for name, array in mark.recurrent.items():
            self._write(name, array, turn)
        self._live = _Live(mark.past_len, turn)

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state of `past_len` positions, as `state_dict` returns it.

        Meant for a new state: if it fails, drop the state.

        Args:
            past_len: Positions fed.
            arrays: By input name, of the contract's dtypes: keys and values
                [1, num_key_value_heads, past_len, head_dim], conv states
                [1, d_inner, d_conv - 1], recurrent states [1, d_inner, d_state].
        """
        turn = 1 - self._live.turn
        self._live = _Live(0, 1 - turn)
        self.make_room(past_len)
        for name, array in arrays:
            self._write(name, array, turn)
        self._live = _Live(past_len, turn)

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return copies of the state on the host, by input name.

        Shapes and dtypes are those of `load_state_dict`; keys and values end at `past_len`.
        """
        del copy
        return {state.input: self._read(state.input, self._live.turn) for state in self._states}

    def _read(self, name: str, turn: int) -> NDArray[Any]:
        """Return one tensor of the state; keys and values end at `past_len`."""
        spec, cache = self._specs[name], self._caches.get(name)
        shape = [int(d) for d in spec.shape]
        if cache is not None:
            shape[2] = self.past_len
        array = np.empty(shape, spec.dtype)
        block = cache or self._rewritten[turn][name]
        for host, device, nbytes in _runs(array, block.address, spec, cache is not None):
            self._cuda.copy(host, device, nbytes, stream=self._stream)
        self._cuda.synchronize(self._stream)
        return array

    def _write(self, name: str, array: NDArray[Any], turn: int) -> None:
        spec, cache = self._specs[name], self._caches.get(name)
        held = np.ascontiguousarray(array, spec.dtype)
        block = cache or self._rewritten[turn][name]
        for host, device, nbytes in _runs(held, block.address, spec, cache is not None):
            self._cuda.copy(device, host, nbytes, stream=self._stream)
        self._cuda.synchronize(self._stream)

    def _zeros(self, name: str) -> DeviceBlock:
        spec = self._specs[name]
        shape = [int(d) for d in spec.shape]
        block = DeviceBlock(self._cuda, math.prod(shape) * np.dtype(spec.dtype).itemsize)
        # attention gives positions after the last weight 0, and 0 * NaN is NaN
        self._cuda.zero(block, stream=self._stream)
        return block


def _runs(
    array: NDArray[Any], device: int, spec: TensorSpec, is_cache: bool
) -> Iterable[tuple[int, int, int]]:
    """Yield host address, device address and length of each contiguous part.

    A cache has one part for each head, because the device has room for more positions.
    """
    host: int = array.__array_interface__["data"][0]
    if not is_cache:
        yield host, device, array.nbytes
        return
    _, heads, capacity, head_dim = (int(d) for d in spec.shape)
    used = array.nbytes // heads
    for head in range(heads):
        place = head * capacity * head_dim * array.itemsize
        yield host + head * used, device + place, used
