"""What sequences carry between calls, in slots of tensors that are allocated once.

A pool has the caches and the recurrent states of several slots. Kernels work on neighbouring slots at once and write all
of it in place, but for a chunk of many positions, whose new states are copied over the old. How long each sequence is, the
device knows too, so that a captured step stays right as they grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from longllava_trt.core.errors import ContractError, InputError
from longllava_trt.core.stage_spec import PAST_PREFIX, TensorSpec
from longllava_trt.runtime.backends.kernels.device import DeviceStream, torch_dtype
from longllava_trt.runtime.backends.ort.decoder import StateSnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.kernels.graph import CapturedStep

__all__ = ["KernelsState", "SlotSpan", "StatePool"]


class SlotSpan(NamedTuple):
    """Neighbouring slots, as the kernels take them."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Of each layer key and value [slots, kv_heads, capacity, head_dim], or conv state [slots, d_inner, d_conv - 1] and
    recurrent state [slots, d_inner, d_state]."""
    past_len: torch.Tensor
    """Positions fed. [slots], int32."""


class StatePool:
    """Slots for sequences, all of one capacity.

    Args:
        specs: The decoder's carried state, layer by layer, two tensors each.
        num_slots: Sequences.
        capacity: Positions that each has room for.
        stream: Where it lies; what is done here is enqueued there.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        *,
        num_slots: int,
        capacity: int,
        stream: DeviceStream,
    ) -> None:
        self.stream, self.num_slots, self.capacity = stream, num_slots, capacity
        self.graphs: dict[tuple[int, int], CapturedStep] = {}
        """Captured steps by the span of slots, first and one past the last."""
        self.warm: set[tuple[int, int]] = set()
        """Spans of which a step has been launched, so that all its kernels are compiled."""
        self._specs = {spec.name: spec for spec in specs if spec.name.startswith(PAST_PREFIX)}
        with stream.active():
            # zeros, not garbage: a position that is weighed with zero must be finite
            self.tensors = {name: self._zeros(spec) for name, spec in self._specs.items()}
            self.past_len = torch.zeros(num_slots, dtype=torch.int32, device=stream.device)
        self.caches = tuple(n for n, s in self._specs.items() if "capacity" in s.shape)
        """Names of keys and values."""
        self.recurrent = tuple(name for name in self._specs if name not in self.caches)
        """Names of all that is rewritten in each call."""

    def span(self, first: int, last: int) -> SlotSpan:
        """Return slots from the first to one before the last; views."""
        tensors = [tensor[first:last] for tensor in self.tensors.values()]
        return SlotSpan(
            tuple(zip(tensors[::2], tensors[1::2], strict=True)), self.past_len[first:last]
        )

    def reserve(self, capacity: int) -> None:
        """Make room for more positions in every slot; copies the caches, and captured steps are forgotten."""
        if capacity <= self.capacity:
            return
        self.graphs.clear()
        self.warm.clear()
        self.capacity, before = capacity, self.capacity
        with self.stream.active():
            for name in self.caches:
                grown = self._zeros(self._specs[name])
                grown[:, :, :before] = self.tensors[name]
                self.tensors[name] = grown

    def keep(self, slots: Sequence[int]) -> list[torch.Tensor]:
        """Return copies of what a step would change in some slots. Call it while active."""
        held = [self.past_len, *(self.tensors[name] for name in self.recurrent)]
        return [tensor[slot].clone() for tensor in held for slot in slots]

    def put_back(self, slots: Sequence[int], kept: list[torch.Tensor]) -> None:
        """Undo what was done since `keep`; positions behind the last are overwritten later anyway."""
        held = [self.past_len, *(self.tensors[name] for name in self.recurrent)]
        places = [tensor[slot] for tensor in held for slot in slots]
        for place, value in zip(places, kept, strict=True):
            place.copy_(value)

    def _zeros(self, spec: TensorSpec) -> torch.Tensor:
        sizes = {"batch": self.num_slots, "capacity": self.capacity}
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        return torch.zeros(shape, dtype=torch_dtype(spec.dtype), device=self.stream.device)


class KernelsState:
    """One sequence: a slot of a pool. Has the methods of `DecoderState`.

    Args:
        pool: Whose slot.
        slot: Which.
    """

    def __init__(self, pool: StatePool, slot: int) -> None:
        self.pool, self.slot = pool, slot
        self.past_len = 0
        """Positions fed so far."""

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.pool.capacity

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions in all, in all slots of the pool."""
        self.pool.reserve(capacity)

    def make_room(self, seq_len: int) -> None:
        """Refuse positions that do not fit.

        Raises:
            InputError: If they exceed the capacity.
        """
        if self.past_len + seq_len > self.capacity:
            raise InputError(
                f"decoder: {self.past_len} positions fed and {seq_len} more exceed the cache of "
                f"{self.capacity}; reserve more, shorten the prompt or show fewer images"
            )

    def snapshot(self) -> StateSnapshot:
        """Return the present point; copies the recurrent states alone."""
        return StateSnapshot(self.past_len, dict(self._read(self.pool.recurrent)))

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a point of this sequence; keys and values after it are given up, and overwritten later."""
        self._write(mark.past_len, mark.recurrent.items())

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state of so many positions, as `state_dict` returns it. There must be room for it.

        Raises:
            InputError: If there is none.
            ContractError: If an array is none of this model's, or of another shape.
        """
        self.past_len = 0
        self.make_room(past_len)
        self._write(past_len, arrays)

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return the state by input name, keys and values up to `past_len` only; always copies, off the device."""
        del copy
        return dict(self._read(self.pool.tensors))

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, NDArray[Any]]]:
        for name in names:
            with self.pool.stream.active():
                yield name, self.pool.stream.to_host(self._held(name, self.past_len))

    def _write(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        for name, array in arrays:
            if name not in self.pool.tensors:
                raise ContractError(f"decoder: carries no '{name}'; the state is another model's")
            held = self._held(name, past_len)
            if tuple(held.shape) != array.shape:
                raise ContractError(
                    f"decoder: '{name}' must be {list(held.shape)}, got {list(array.shape)}; the state is another model's"
                )
            with self.pool.stream.active():
                held.copy_(self.pool.stream.to_device(array))
        with self.pool.stream.active():
            self.pool.past_len[self.slot] = past_len
        self.past_len = past_len

    def _held(self, name: str, past_len: int) -> torch.Tensor:
        """Return this slot's part of a tensor; of keys and values the positions that were fed."""
        rows = self.pool.tensors[name][self.slot : self.slot + 1]
        return rows[:, :, :past_len] if name in self.pool.caches else rows
