"""The decoder stage with its carried state.

Keys and values are written in place: one buffer is bound both as input and as output, and ONNX Runtime's
TensorScatter then copies nothing. Conv and recurrent states are double-buffered, because a kernel may read a
state after it has begun to write the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longllava_trt.contracts import TensorSpec, present_name
from longllava_trt.errors import InputError

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from runtime.onnxrt import OnnxSession

__all__ = ["Decoder", "DecoderState"]

_PAST = "past_key_values."


class _Buffer(NamedTuple):
    """Memory that NumPy and ONNX Runtime share."""

    array: NDArray[Any]
    value: onnxruntime.OrtValue

    @classmethod
    def zeros(cls, spec: TensorSpec, capacity: int) -> _Buffer:
        """Allocate one carried-state tensor for a single sequence."""
        import onnxruntime

        sizes = {"batch": 1, "capacity": capacity}
        shape = [sizes[d] if isinstance(d, str) else d for d in spec.shape]
        array = np.zeros(shape, dtype=spec.dtype)
        return cls(array, onnxruntime.OrtValue.ortvalue_from_numpy(array))


class DecoderState:
    """Everything one sequence carries between calls.

    Args:
        spec: The decoder's carried-state inputs.
        capacity: Positions to make room for.
    """

    def __init__(self, spec: tuple[TensorSpec, ...], *, capacity: int) -> None:
        self.past_len = 0
        """Positions fed so far."""
        self.capacity = capacity
        self._in_place = {t.name: t for t in spec if "capacity" in t.shape}
        # zeros, not garbage: attention weighs positions beyond the last with zero, and 0 * NaN is NaN
        self.current = {t.name: _Buffer.zeros(t, capacity) for t in spec}
        self.spare = {
            t.name: _Buffer.zeros(t, capacity) for t in spec if t.name not in self._in_place
        }

    def advance(self, seq_len: int) -> None:
        """Make the state just written the current one."""
        self.past_len += seq_len
        for name, written in self.spare.items():
            self.spare[name], self.current[name] = self.current[name], written

    def reserve(self, capacity: int) -> None:
        """Make room for more positions, keeping what is there. Copies the cache, so ask for enough at once."""
        if capacity <= self.capacity:
            return
        for name, spec in self._in_place.items():
            grown = _Buffer.zeros(spec, capacity)
            grown.array[:, :, : self.past_len] = self.current[name].array[:, :, : self.past_len]
            self.current[name] = grown
        self.capacity = capacity

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copy the state out, by input name; keys and values up to `past_len` only."""
        return {
            name: (array[:, :, : self.past_len] if name in self._in_place else array).copy()
            for name, (array, _) in self.current.items()
        }


class Decoder:
    """Feeds a decoder stage.

    Args:
        session: The loaded stage.
    """

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self._state_spec = tuple(t for t in session.spec.inputs if t.name.startswith(_PAST))
        self.vocab_size = int(session.spec.outputs[0].shape[-1])

    def new_state(self, *, capacity: int) -> DecoderState:
        """Return the state of a sequence that has not begun."""
        return DecoderState(self._state_spec, capacity=capacity)

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
        if state.past_len + seq_len > state.capacity:
            raise InputError(
                f"decoder: {state.past_len} positions fed and {seq_len} more exceed the cache of "
                f"{state.capacity}; reserve more, shorten the prompt or show fewer images"
            )
        binding = self._session.session.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(inputs_embeds))
        binding.bind_cpu_input("past_len", np.array([state.past_len], dtype=np.int64))
        binding.bind_output("logits")
        for name, buffer in state.current.items():
            binding.bind_ortvalue_input(name, buffer.value)
            binding.bind_ortvalue_output(present_name(name), state.spare.get(name, buffer).value)
        self._session.session.run_with_iobinding(binding)
        state.advance(seq_len)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()[0, -1]
        return logits
