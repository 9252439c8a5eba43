"""State that sequences carry between calls, in slots of tensors that are allocated once.

A pool has the caches and the recurrent states of several slots; kernels work on neighbouring slots
at once. Keys and values are appended in place. Everything that is rewritten, lengths too, exists
twice: a call reads one half and writes the other half, and then one assignment makes that the
present half. A call that is interrupted has changed nothing. The device has the sequences' lengths
too, not only the host, so a captured step stays right when they grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from longllava_trt.core.errors import ContractError, InputError
from longllava_trt.core.stage_spec import PAST_PREFIX, TensorSpec
from longllava_trt.runtime.backends.base import StateSnapshot
from longllava_trt.runtime.backends.kernels.device import DeviceStream, torch_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.kernels.graph import CapturedStep

__all__ = ["KernelsState", "SlotSpan", "StatePool"]

Pair = tuple[torch.Tensor, torch.Tensor]


class SlotSpan(NamedTuple):
    """Neighbouring slots, as the kernels take them."""

    layers: tuple[Pair, ...]
    """Two tensors for each layer.

    Key and value [slots, kv_heads, capacity, head_dim], written in place; or conv state
    [slots, d_inner, d_conv - 1] and recurrent state [slots, d_inner, d_state], only read.
    """
    written: tuple[Pair, ...]
    """Tensors for the next states; keys and values are the same tensors as in `layers`."""
    past_len: torch.Tensor
    """Positions fed; only read. [slots], int32."""
    next_len: torch.Tensor
    """Memory for the positions fed after the call. [slots], int32."""


class _Point(NamedTuple):
    """Index of the present half, and the positions that each slot was fed."""

    half: int
    lengths: tuple[int, ...]


class StatePool:
    """Slots for sequences, all of one capacity.

    Args:
        specs: The decoder's carried state, layer by layer, two tensors each.
        num_slots: Sequences.
        capacity: Positions that each slot has room for.
        stream: Its device holds the pool, and all work of the pool is enqueued on it.
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
        self.graphs: dict[tuple[int, int, int], CapturedStep] = {}
        """Captured steps, by first slot, one past the last slot, and the half that is read."""
        self.warm: set[tuple[int, int]] = set()
        """Spans with a step that was launched, so that all its kernels are compiled."""
        self._specs = {spec.name: spec for spec in specs if spec.name.startswith(PAST_PREFIX)}
        self.caches = tuple(n for n, s in self._specs.items() if "capacity" in s.shape)
        """Names of keys and values."""
        self.recurrent = tuple(name for name in self._specs if name not in self.caches)
        """Names of the tensors that each call rewrites."""
        with stream.active():
            # zeros, not garbage: a position with weight zero must be finite
            tensors = {name: self._zeros(spec) for name, spec in self._specs.items()}
            other = {
                n: torch.zeros_like(t) if n in self.recurrent else t for n, t in tensors.items()
            }
            self._halves = (tensors, other)
            # two tensors, not two rows of one: Triton compiles again for an address of another
            # alignment, and before a capture the step of one half must compile those of both
            self._lengths = tuple(
                torch.zeros(num_slots, dtype=torch.int32, device=stream.device) for _ in range(2)
            )
        self._point = _Point(0, (0,) * num_slots)

    @property
    def half(self) -> int:
        """Index of the half that is read next: 0 or 1."""
        return self._point.half

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions that each slot was fed."""
        return self._point.lengths

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The present states by name, all slots."""
        return self._halves[self.half]

    @property
    def past_len(self) -> torch.Tensor:
        """The lengths as the device knows them. [num_slots], int32."""
        return self._lengths[self.half]

    def span(self, first: int, last: int) -> SlotSpan:
        """Return views of the slots from `first` to `last - 1`, as the next call takes them."""
        read, write = (
            [tensor[first:last] for tensor in self._halves[half].values()]
            for half in (self.half, 1 - self.half)
        )
        return SlotSpan(
            tuple(zip(read[::2], read[1::2], strict=True)),
            tuple(zip(write[::2], write[1::2], strict=True)),
            self._lengths[self.half][first:last],
            self._lengths[1 - self.half][first:last],
        )

    def carry_over(self, slots: Sequence[int]) -> None:
        """Copy the states of slots that a call skips to the half that the call writes.

        Call it while the stream is active.
        """
        if not slots:
            return
        for slot in slots:
            self._lengths[1 - self.half][slot] = self.lengths[slot]
        for dtype in {tensor.dtype for tensor in self.tensors.values()}:
            names = [name for name in self.recurrent if self.tensors[name].dtype == dtype]
            now, then = (
                [self._halves[half][name][slot] for name in names for slot in slots]
                for half in (self.half, 1 - self.half)
            )
            if now:
                # one launch for all tensors of one dtype
                torch._foreach_copy_(then, now)

    def publish(self, lengths: Mapping[int, int]) -> None:
        """Make the half that was just written the present one.

        Args:
            lengths: New lengths by slot, for slots whose length has changed.
        """
        kept = self._point.lengths
        self._point = _Point(
            1 - self.half, tuple(lengths.get(slot, kept[slot]) for slot in range(self.num_slots))
        )

    def clear(self) -> None:
        """Make all slots empty. Keys and values stay in memory, but are never read."""
        with self.stream.active():
            for name in self.recurrent:
                self.tensors[name].zero_()
            self.past_len.zero_()
        self._point = _Point(self.half, (0,) * self.num_slots)

    def set_length(self, slot: int, past_len: int) -> None:
        """Set the number of positions that a slot was fed."""
        with self.stream.active():
            self._lengths[self.half][slot] = past_len
        lengths = list(self.lengths)
        lengths[slot] = past_len
        self._point = _Point(self.half, tuple(lengths))

    def reserve(self, capacity: int) -> None:
        """Make room for more positions in every slot; copies the caches, drops captured steps."""
        if capacity <= self.capacity:
            return
        self.graphs.clear()
        self.warm.clear()
        self.capacity, before = capacity, self.capacity
        with self.stream.active():
            for name in self.caches:
                grown = self._zeros(self._specs[name])
                grown[:, :, :before] = self.tensors[name]
                for half in self._halves:
                    half[name] = grown

    def write_slot(
        self, slot: int, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]
    ) -> None:
        """Write a state to a slot; tensors that ``arrays`` lacks stay as they are.

        Args:
            slot: Index of the slot.
            past_len: Positions that the state was fed.
            arrays: As for `KernelsState.load_state_dict`.

        Raises:
            ContractError: If an array has a name or a shape that this model does not have. Only the
                slot's keys and values may have changed then.
        """
        with self.stream.active():
            self.carry_over(range(self.num_slots))
            for name, array in arrays:
                if name not in self._specs:
                    raise ContractError(
                        f"decoder: carries no '{name}'; the state is another model's"
                    )
                held = self.rows_of(name, slot, past_len, half=1 - self.half)
                if tuple(held.shape) != array.shape:
                    raise ContractError(
                        f"decoder: '{name}' must be {list(held.shape)}, got {list(array.shape)}; "
                        "the state is another model's"
                    )
                held.copy_(self.stream.to_device(array))
            self._lengths[1 - self.half][slot] = past_len
            self.publish({slot: past_len})

    def rows_of(
        self, name: str, slot: int, past_len: int, *, half: int | None = None
    ) -> torch.Tensor:
        """Return a view of one slot of a tensor: [1, …], of the tensor's dtype.

        Args:
            name: Input name of the tensor.
            slot: Index of the slot.
            past_len: Keys and values are returned up to this position.
            half: Half to read; by default the present one.
        """
        rows = self._halves[self.half if half is None else half][name][slot : slot + 1]
        return rows[:, :, :past_len] if name in self.caches else rows

    def _zeros(self, spec: TensorSpec) -> torch.Tensor:
        sizes = {"batch": self.num_slots, "capacity": self.capacity}
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        return torch.zeros(shape, dtype=torch_dtype(spec.dtype), device=self.stream.device)


class KernelsState:
    """One sequence: a slot of a pool. Has the methods of `DecoderState`.

    Args:
        pool: Pool that has the slot.
        slot: Index of the slot.
    """

    def __init__(self, pool: StatePool, slot: int) -> None:
        self.pool, self.slot = pool, slot

    @property
    def past_len(self) -> int:
        """Positions fed so far. Only measurements set it; states and caches stay as they are."""
        return self.pool.lengths[self.slot]

    @past_len.setter
    def past_len(self, past_len: int) -> None:
        self.pool.set_length(self.slot, past_len)

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.pool.capacity

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` positions in all, in all slots of the pool."""
        self.pool.reserve(capacity)

    def make_room(self, seq_len: int) -> None:
        """Raise an error if positions do not fit.

        Raises:
            InputError: If they exceed the capacity.
        """
        if self.past_len + seq_len > self.capacity:
            raise InputError(
                f"decoder: {self.past_len} positions fed and {seq_len} more exceed the cache of "
                f"{self.capacity}; reserve more, shorten the prompt or show fewer images"
            )

    def snapshot(self) -> StateSnapshot:
        """Return a snapshot of the present state; copies only conv and recurrent states."""
        return StateSnapshot(self.past_len, dict(self._read(self.pool.recurrent)))

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a snapshot of this sequence; later keys and values will be overwritten."""
        self.pool.write_slot(self.slot, mark.past_len, mark.recurrent.items())

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state of `past_len` positions, as `state_dict` returns it.

        Args:
            past_len: Positions fed; there must be room for them.
            arrays: By input name: keys and values [1, kv_heads, past_len, head_dim], conv states
                [1, d_inner, d_conv - 1], recurrent states [1, d_inner, d_state]; of the
                contract's dtypes.

        Raises:
            InputError: If there is none.
            ContractError: If an array has a name or a shape that this model does not have.
        """
        if past_len > self.capacity:
            raise InputError(
                f"decoder: a state of {past_len} positions exceeds the cache of {self.capacity}; "
                "reserve more"
            )
        self.pool.write_slot(self.slot, past_len, arrays)

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return copies of the state on the host, by input name.

        Shapes and dtypes are those of `load_state_dict`; keys and values end at `past_len`.
        """
        del copy
        return dict(self._read(self.pool.tensors))

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, NDArray[Any]]]:
        for name in names:
            with self.pool.stream.active():
                rows = self.pool.rows_of(name, self.slot, self.past_len)
                yield name, self.pool.stream.to_host(rows)
