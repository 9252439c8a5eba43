"""The decoder stage with its carried state.

Keys and values are written in place: one buffer is bound both as input and as output, so that ONNX
Runtime's TensorScatter copies nothing. Attention takes time and memory for every position of the
buffer, used or not; so the buffer grows with the sequence, by an eighth at a time. Convolution and
recurrent states are double-buffered, because a kernel may read a state after it has begun to write
the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import StageSpec, TensorSpec, present_name
from longllava_trt.runtime.backends.base import StateSnapshot

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.ort.session import OnnxSession

__all__ = ["Decoder", "DecoderState"]

_PAST = "past_key_values."
_FIRST_EXTENT = 1024
_SPARE_SHARE = 8


class _Buffer(NamedTuple):
    """Memory that NumPy and ONNX Runtime share."""

    array: NDArray[Any]
    value: onnxruntime.OrtValue

    @classmethod
    def over(cls, array: NDArray[Any]) -> _Buffer:
        """Share a contiguous array of any shape and dtype."""
        import onnxruntime

        return cls(array, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    @classmethod
    def zeros(cls, spec: TensorSpec, *, extent: int = 1) -> _Buffer:
        """Allocate a tensor for one sequence; a cache has room for ``extent`` positions."""
        named = {"capacity": extent}
        shape = [d if isinstance(d, int) else named.get(d, 1) for d in spec.shape]
        return cls.over(np.zeros(shape, dtype=spec.dtype))


class _Buffers:
    """All buffers of a sequence, for one size of its caches.

    Args:
        caches: Keys and values by input name, each [1, num_key_value_heads, extent, head_dim].
        rewritten: Two sets of convolution and recurrent states by input name; they take turns.
    """

    def __init__(
        self, caches: Mapping[str, _Buffer], rewritten: tuple[dict[str, _Buffer], ...]
    ) -> None:
        self.caches = caches
        self.rewritten = rewritten
        self.bindings: dict[int, tuple[onnxruntime.IOBinding, NDArray[np.float32]]] = {}
        """Bindings of these buffers, made once for each turn."""

    def grown(self, spec: TensorSpec, extent: int, *, used: int) -> _Buffers:
        """Return buffers with room for more positions in one cache; copies the ``used`` ones."""
        # zeros, not garbage: attention gives positions after the last weight 0, and 0 * NaN is NaN
        cache = _Buffer.zeros(spec, extent=extent)
        cache.array[:, :, :used] = self.caches[spec.name].array[:, :, :used]
        return _Buffers({**self.caches, spec.name: cache}, self.rewritten)


class _Live(NamedTuple):
    """Contents of a state at one moment; replaced as a whole."""

    past_len: int
    turn: int
    """Index of the current set of convolution and recurrent states: 0 or 1."""
    buffers: _Buffers


class DecoderState:
    """Everything one sequence carries between calls.

    Every change builds the next state and publishes it in one assignment, so that a call that is
    broken off anywhere leaves the state as it was.

    Args:
        spec: The decoder's carried-state inputs.
        capacity: Positions to allow. Memory is taken when they are fed.
    """

    def __init__(self, spec: tuple[TensorSpec, ...], *, capacity: int) -> None:
        self.capacity = capacity
        """Positions there is room for."""
        self._cache_specs = {t.name: t for t in spec if "capacity" in t.shape}
        rewritten = [t for t in spec if t.name not in self._cache_specs]
        first, second = ({t.name: _Buffer.zeros(t) for t in rewritten} for _ in range(2))
        self._live = _Live(0, 0, self._buffers(min(capacity, _FIRST_EXTENT), (first, second)))
        self._position = _Buffer.over(np.zeros(1, np.int64))

    @classmethod
    def of_stage(cls, stage: StageSpec, *, capacity: int) -> DecoderState:
        """Return the state of a new sequence; this does not load the stage."""
        carried = tuple(t for t in stage.inputs if t.name.startswith(_PAST))
        return cls(carried, capacity=capacity)

    @property
    def past_len(self) -> int:
        """Positions fed so far."""
        return self._live.past_len

    @property
    def current(self) -> dict[str, _Buffer]:
        """Buffers that the next call reads, by input name."""
        _, turn, buffers = self._live
        return {**buffers.rewritten[turn], **buffers.caches}

    @property
    def spare(self) -> dict[str, _Buffer]:
        """Buffers that the next call writes convolution and recurrent states to, by input name."""
        _, turn, buffers = self._live
        return buffers.rewritten[1 - turn]

    def advance(self, seq_len: int) -> None:
        """Make the state just written the current one."""
        past_len, turn, buffers = self._live
        self._live = _Live(past_len + seq_len, 1 - turn, buffers)

    def reserve(self, capacity: int) -> None:
        """Allow more positions; memory is taken when they are fed."""
        self.capacity = max(capacity, self.capacity)

    def make_room(self, seq_len: int) -> None:
        """Make the caches long enough for the next positions.

        Raises:
            InputError: If they exceed the capacity.
        """
        past_len, turn, buffers = self._live
        needed = past_len + seq_len
        if needed > self.capacity:
            raise InputError(
                f"decoder: {past_len} positions fed and {seq_len} more exceed the cache of "
                f"{self.capacity}; reserve more, shorten the prompt or show fewer images"
            )
        extent = min(self.capacity, needed + needed // _SPARE_SHARE)
        # one after another, so that only one cache is in memory twice
        for name, spec in self._cache_specs.items():
            if buffers.caches[name].array.shape[2] < needed:
                buffers = buffers.grown(spec, extent, used=past_len)
                self._live = _Live(past_len, turn, buffers)

    def snapshot(self) -> StateSnapshot:
        """Return a snapshot of the present state; copies only conv and recurrent states."""
        past_len, turn, buffers = self._live
        held = buffers.rewritten[turn]
        return StateSnapshot(past_len, {name: held[name].array.copy() for name in held})

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a snapshot of this sequence; later keys and values will be overwritten."""
        _, turn, buffers = self._live
        for name, array in mark.recurrent.items():
            buffers.rewritten[1 - turn][name].array[...] = array
        self._live = _Live(mark.past_len, 1 - turn, buffers)

    def binding(self, session: OnnxSession) -> tuple[onnxruntime.IOBinding, NDArray[np.float32]]:
        """Return a binding of all buffers, and the logits [1, vocab_size], float32, that it writes.

        Always pass the same decoder's session. The binding is made once for each turn of the double
        buffers: binding every value again would take longer than the rest of a step outside ONNX
        Runtime.
        """
        past_len, turn, buffers = self._live
        self._position.array[0] = past_len
        if turn not in buffers.bindings:
            logits = _Buffer.zeros(session.spec.outputs[0])
            made = session.session.io_binding()
            made.bind_ortvalue_input("past_len", self._position.value)
            made.bind_ortvalue_output("logits", logits.value)
            spare = self.spare
            for name, buffer in self.current.items():
                made.bind_ortvalue_input(name, buffer.value)
                made.bind_ortvalue_output(present_name(name), spare.get(name, buffer).value)
            buffers.bindings[turn] = made, logits.array
        return buffers.bindings[turn]

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state of `past_len` positions, as `state_dict` returns it.

        Meant for a fresh state: if it fails, drop the state.

        Args:
            past_len: Positions fed; there must be room for them.
            arrays: By input name, of the contract's dtypes: keys and values
                [1, num_key_value_heads, past_len, head_dim], conv states
                [1, d_inner, d_conv - 1], recurrent states [1, d_inner, d_state].
        """
        _, turn, buffers = self._live
        self._live = _Live(0, turn, buffers)
        self.make_room(past_len)
        _, turn, buffers = self._live
        spare = buffers.rewritten[1 - turn]
        for name, array in arrays:
            if name in buffers.caches:
                buffers.caches[name].array[:, :, :past_len] = array
            else:
                spare[name].array[...] = array
        self._live = _Live(past_len, 1 - turn, buffers)

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return the state by input name; keys and values end at `past_len`.

        Shapes and dtypes are those of `load_state_dict`.

        Args:
            copy: Return copies. Without it, arrays are views that are valid until the next step.
        """
        past_len, turn, buffers = self._live
        views = {name: buffer.array for name, buffer in buffers.rewritten[turn].items()}
        for name, buffer in buffers.caches.items():
            views[name] = buffer.array[:, :, :past_len]
        return {name: view.copy() for name, view in views.items()} if copy else views

    def _buffers(self, extent: int, rewritten: tuple[dict[str, _Buffer], ...]) -> _Buffers:
        specs = self._cache_specs.items()
        caches = {name: _Buffer.zeros(spec, extent=extent) for name, spec in specs}
        return _Buffers(caches, rewritten)


class Decoder:
    """Runs a decoder stage.

    Args:
        session: The loaded stage.
    """

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self.vocab_size = int(session.spec.outputs[0].shape[-1])

    def new_state(self, *, capacity: int) -> DecoderState:
        """Return the state of a new sequence."""
        return DecoderState.of_stage(self._session.spec, capacity=capacity)

    def step(self, inputs_embeds: NDArray[np.float32], state: DecoderState) -> NDArray[np.float32]:
        """Feed one or more positions and advance the state.

        Args:
            inputs_embeds: [1, seq_len, hidden_size], float32.
            state: Changed in place; if the call fails it is as it was.

        Returns:
            Logits of the token that follows. [vocab_size], float32.

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
