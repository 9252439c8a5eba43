"""The decoder stage with its carried state.

Keys and values are written in place: one buffer is bound both as input and as output, and ONNX Runtime's
TensorScatter then copies nothing. Its attention costs time and memory for every position of the buffer, used or not; so
the buffer grows with the sequence, by an eighth at a time and within memory that was reserved at once. Conv and recurrent states are double-buffered, because a kernel may read a
state after it has begun to write the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import StageSpec, TensorSpec, present_name

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.ort.session import OnnxSession

__all__ = ["Decoder", "DecoderState", "StateSnapshot"]

_PAST = "past_key_values."
_FIRST_EXTENT = 1024
_SPARE_SHARE = 8


class _Buffer(NamedTuple):
    """Memory that NumPy and ONNX Runtime share."""

    array: NDArray[Any]
    value: onnxruntime.OrtValue

    @classmethod
    def over(cls, array: NDArray[Any]) -> _Buffer:
        """Share an array, which must be contiguous."""
        import onnxruntime

        return cls(array, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    @classmethod
    def zeros(cls, spec: TensorSpec) -> _Buffer:
        """Allocate a tensor of a fixed size for a single sequence."""
        shape = [d if isinstance(d, int) else 1 for d in spec.shape]
        return cls.over(np.zeros(shape, dtype=spec.dtype))


class _Cache:
    """Keys or values, [1, num_key_value_heads, extent, head_dim], in one block of memory.

    The block has room for all that was reserved, but pages that were never touched cost nothing. Only `extent` positions
    are shown to ONNX Runtime, whose attention works through all it is shown.
    """

    def __init__(self, spec: TensorSpec, *, capacity: int, extent: int) -> None:
        _, self._heads, _, self._head_dim = (d if isinstance(d, int) else 0 for d in spec.shape)
        # zeros, not garbage: attention weighs positions beyond the last with zero, and 0 * NaN is NaN
        self._block = np.zeros(self._heads * capacity * self._head_dim, dtype=spec.dtype)
        self.buffer = _Buffer.over(self._view(extent))

    def extend(self, extent: int, *, used: int) -> None:
        """Show more positions, moving the ``used`` ones to where they then belong."""
        old, new = self.buffer.array, self._view(extent)
        # from the last head, so that none is overwritten before it has been moved
        for head in reversed(range(self._heads)):
            new[0, head, :used] = old[0, head, :used]
        self.buffer = _Buffer.over(new)

    def _view(self, extent: int) -> NDArray[Any]:
        shown = self._block[: self._heads * extent * self._head_dim]
        return shown.reshape(1, self._heads, extent, self._head_dim)


class StateSnapshot(NamedTuple):
    """A point to which a state can go back, as long as it has not gone back beyond it."""

    past_len: int
    recurrent: Mapping[str, NDArray[Any]]
    """Copies of what is not appended to, by input name; never changed."""


class DecoderState:
    """Everything one sequence carries between calls.

    Args:
        spec: The decoder's carried-state inputs.
        capacity: Positions to make room for. Memory is taken as they are fed.
    """

    def __init__(self, spec: tuple[TensorSpec, ...], *, capacity: int) -> None:
        self.past_len = 0
        """Positions fed so far."""
        self.capacity = capacity
        self._extent = min(capacity, _FIRST_EXTENT)
        self._cache_specs = {t.name: t for t in spec if "capacity" in t.shape}
        self._caches = self._new_caches(capacity, self._extent)
        rewritten = [t for t in spec if t.name not in self._cache_specs]
        self.current = {t.name: _Buffer.zeros(t) for t in rewritten}
        self.spare = {t.name: _Buffer.zeros(t) for t in rewritten}
        self.current |= {name: cache.buffer for name, cache in self._caches.items()}
        self._turn = 0
        self._position = _Buffer.over(np.zeros(1, np.int64))
        self._bindings: dict[int, tuple[onnxruntime.IOBinding, NDArray[np.float32]]] = {}

    @classmethod
    def of_stage(cls, stage: StageSpec, *, capacity: int) -> DecoderState:
        """Return the state of a sequence that has not begun; the stage need not be loaded."""
        carried = tuple(t for t in stage.inputs if t.name.startswith(_PAST))
        return cls(carried, capacity=capacity)

    def advance(self, seq_len: int) -> None:
        """Make the state just written the current one."""
        self.past_len += seq_len
        self._turn = 1 - self._turn
        for name, written in self.spare.items():
            self.spare[name], self.current[name] = self.current[name], written

    def reserve(self, capacity: int) -> None:
        """Make room for more positions, keeping what is there. Copies the cache, so ask for enough at once."""
        if capacity <= self.capacity:
            return
        for name, grown in self._new_caches(capacity, self._extent).items():
            kept = self.current[name].array[:, :, : self.past_len]
            grown.buffer.array[:, :, : self.past_len] = kept
            self._caches[name], self.current[name] = grown, grown.buffer
        self.capacity = capacity
        self._bindings.clear()

    def make_room(self, seq_len: int) -> None:
        """Show the decoder enough of the cache for the next positions.

        Raises:
            InputError: If they exceed the capacity.
        """
        needed = self.past_len + seq_len
        if needed > self.capacity:
            raise InputError(
                f"decoder: {self.past_len} positions fed and {seq_len} more exceed the cache of "
                f"{self.capacity}; reserve more, shorten the prompt or show fewer images"
            )
        if needed <= self._extent:
            return
        self._extent = min(self.capacity, needed + needed // _SPARE_SHARE)
        for name, cache in self._caches.items():
            cache.extend(self._extent, used=self.past_len)
            self.current[name] = cache.buffer
        self._bindings.clear()

    def snapshot(self) -> StateSnapshot:
        """Return the present point; copies the recurrent states alone."""
        return StateSnapshot(
            self.past_len, {name: self.current[name].array.copy() for name in self.spare}
        )

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a point of this sequence; keys and values after it are given up, and overwritten later."""
        for name, array in mark.recurrent.items():
            self.current[name].array[...] = array
        self.past_len = mark.past_len

    def binding(self, session: OnnxSession) -> tuple[onnxruntime.IOBinding, NDArray[np.float32]]:
        """Return a binding of all that lasts, and the logits it writes, for the one decoder that this state is fed to.

        It is made once for each turn of the double buffers: naming every value again would cost more than the rest of a
        step outside ONNX Runtime.
        """
        self._position.array[0] = self.past_len
        if self._turn not in self._bindings:
            logits = _Buffer.zeros(session.spec.outputs[0])
            made = session.session.io_binding()
            made.bind_ortvalue_input("past_len", self._position.value)
            made.bind_ortvalue_output("logits", logits.value)
            for name, buffer in self.current.items():
                made.bind_ortvalue_input(name, buffer.value)
                made.bind_ortvalue_output(present_name(name), self.spare.get(name, buffer).value)
            self._bindings[self._turn] = made, logits.array
        return self._bindings[self._turn]

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state of so many positions, as `state_dict` returns it. There must be room for it."""
        self.past_len = 0
        self.make_room(past_len)
        for name, array in arrays:
            held = self.current[name].array
            (held[:, :, :past_len] if name in self._caches else held)[...] = array
        self.past_len = past_len

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return the state by input name, keys and values up to `past_len` only; views are valid until the next step."""
        views = {
            name: array[:, :, : self.past_len] if name in self._caches else array
            for name, (array, _) in self.current.items()
        }
        return {name: view.copy() for name, view in views.items()} if copy else views

    def _new_caches(self, capacity: int, extent: int) -> dict[str, _Cache]:
        return {
            name: _Cache(spec, capacity=capacity, extent=extent)
            for name, spec in self._cache_specs.items()
        }


class Decoder:
    """Feeds a decoder stage.

    Args:
        session: The loaded stage.
    """

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self.vocab_size = int(session.spec.outputs[0].shape[-1])

    def new_state(self, *, capacity: int) -> DecoderState:
        """Return the state of a sequence that has not begun."""
        return DecoderState.of_stage(self._session.spec, capacity=capacity)

    def step(self, inputs_embeds: NDArray[np.float32], state: DecoderState) -> NDArray[np.float32]:
        """Feed one or more positions and carry the state on.

        Args:
            inputs_embeds: [1, seq_len, hidden_size].
            state: Changed in place. If the call fails it may hold a part of these positions: drop it.

        Returns:
            Logits of the token that follows. [vocab_size].

        Raises:
            InputError: If the state has no room for them.
        """
        seq_len = inputs_embeds.shape[1]
        state.make_room(seq_len)
        binding, logits = state.binding(self._session)
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(inputs_embeds))
        self._session.session.run_with_iobinding(binding)
        state.advance(seq_len)
        after: NDArray[np.float32] = logits[0, 0].copy()
        return after
