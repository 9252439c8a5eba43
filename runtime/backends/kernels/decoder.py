"""The decoder on our kernels: steps of one sequence or of several, decode steps as CUDA graphs.

Has the methods of `Decoder`. The first decode step of a sequence launches its kernels one by one;
this compiles them. The next two steps are captured, one for each half of the states, and later
steps are replayed. The first step of a decoder checks with `graph_proof` that replays are right.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longllava_trt.core.errors import ContractError, InputError
from longllava_trt.core.stage_spec import PAST_PREFIX, StageSpec
from longllava_trt.runtime.backends.graph_proof import PROOF_STEPS, first_difference
from longllava_trt.runtime.backends.kernels.decoder_model import DecoderModel, Scan, decode
from longllava_trt.runtime.backends.kernels.device import DeviceStream
from longllava_trt.runtime.backends.kernels.graph import CapturedStep
from longllava_trt.runtime.backends.kernels.state import KernelsState, StatePool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Results = dict[str, NDArray[Any]]

__all__ = ["KernelsDecoder"]

logger = logging.getLogger(__name__)


class KernelsDecoder:
    """Runs the decoder.

    Args:
        model: Weights.
        spec: Contract of its stage, from the bundle or `stage_specs`.
        stream: Stream that it runs on.
        use_graphs: Replay decode steps as graphs, if the check finds them right; never on a CPU.
        first_scan: Scan used in place of ours where sequences begin, from a state of zeros.
    """

    def __init__(
        self,
        model: DecoderModel,
        spec: StageSpec,
        stream: DeviceStream,
        *,
        use_graphs: bool = True,
        first_scan: Scan | None = None,
    ) -> None:
        self.model, self.stream = model, stream
        self._first_scan = first_scan
        self.embeds_spec = spec.inputs[0]
        """Contract of the embeddings that `step` takes."""
        self.vocab_size = int(spec.outputs[0].shape[-1])
        self.graphs_are_right: bool | None = None if use_graphs and stream.cuda else False
        """None until the first decode step has tried."""
        self._carried = [tensor for tensor in spec.inputs if tensor.name.startswith(PAST_PREFIX)]
        self._idle: list[StatePool] = []
        self._graph_memory = torch.cuda.graph_pool_handle() if stream.cuda else None

    def new_state(self, *, capacity: int) -> KernelsState:
        """Return the state of a new sequence, in a pool of its own.

        If it is large enough, the pool of a deleted state is used again, with its captured steps.
        """
        idle = self._idle.pop() if self._idle else None
        if idle is None or idle.capacity < capacity:
            # there may be no memory for two large pools
            del idle
            return self._kept_when_gone(self.new_states(1, capacity=capacity)[0])
        idle.clear()
        return self._kept_when_gone(KernelsState(idle, 0))

    def new_states(self, count: int, *, capacity: int) -> list[KernelsState]:
        """Return new states for `step_batch`; they share memory and capacity."""
        pool = StatePool(self._carried, num_slots=count, capacity=capacity, stream=self.stream)
        return [KernelsState(pool, slot) for slot in range(count)]

    def _kept_when_gone(self, state: KernelsState) -> KernelsState:
        """Keep the state's pool for the next one; one idle pool at most."""
        weakref.finalize(state, self._keep, state.pool).atexit = False
        return state

    def _keep(self, pool: StatePool) -> None:
        if not self._idle:
            self._idle.append(pool)

    def step(self, inputs_embeds: NDArray[Any], state: KernelsState) -> NDArray[np.float32]:
        """Feed one or more positions and advance the state.

        Args:
            inputs_embeds: [1, seq_len, hidden_size], of the bundle's dtype.
            state: Changes only when the call is done; a call that is interrupted or fails leaves it
                as it was.

        Returns:
            Logits of the token that follows. [vocab_size], float32.

        Raises:
            InputError: If the state has no room for them.
            ContractError: If they are of another shape or dtype.
        """
        self._check(inputs_embeds, batch=1)
        logits: NDArray[np.float32] = self._feed_array(inputs_embeds, [state])[0]
        return logits

    def step_batch(
        self, inputs_embeds: NDArray[Any], states: Sequence[KernelsState]
    ) -> NDArray[np.float32]:
        """Feed one position to each of several sequences; their lengths may differ.

        Args:
            inputs_embeds: [len(states), 1, hidden_size], of the bundle's dtype.
            states: From one call of `new_states`, each once. As for `step`.

        Returns:
            Logits of the token that follows in each sequence. [len(states), vocab_size], float32.

        Raises:
            InputError: If the states are not of one pool, or one has no room.
            ContractError: If they are of another shape or dtype.
        """
        self._check(inputs_embeds, batch=len(states))
        if inputs_embeds.shape[1] != 1:
            raise ContractError(
                f"decoder: a batch takes one position a sequence, got {inputs_embeds.shape[1]}; "
                "feed prompts one at a time"
            )
        return self._feed_array(inputs_embeds, states)

    def feed(self, inputs_embeds: torch.Tensor, states: Sequence[KernelsState]) -> torch.Tensor:
        """Feed positions that are on the device. Does not wait for the device.

        Call it while the stream is active.

        Args:
            inputs_embeds: [len(states), seq_len, hidden_size], of the model's dtype.
            states: One state, or several of one pool.

        Returns:
            Logits, valid until the next call. [len(states), vocab_size], float32.
        """
        logits = self._begin(inputs_embeds, states)
        _publish(states, inputs_embeds.shape[1])
        return logits

    def _feed_array(
        self, inputs_embeds: NDArray[Any], states: Sequence[KernelsState]
    ) -> NDArray[np.float32]:
        """Feed positions and wait; the states change once their logits have arrived."""
        with self.stream.active():
            logits = self._begin(self.stream.to_device(inputs_embeds), states)
            found: NDArray[np.float32] = self.stream.to_host(logits)
        _publish(states, inputs_embeds.shape[1])
        return found

    def _begin(self, inputs_embeds: torch.Tensor, states: Sequence[KernelsState]) -> torch.Tensor:
        """Launch the kernels that compute the logits and the next states."""
        pool, slots = self._slots_of(states)
        for state in states:
            state.make_room(inputs_embeds.shape[1])
        is_step = inputs_embeds.shape[1] == 1
        if is_step and self.graphs_are_right is None and _has_room(states):
            self.graphs_are_right = self._prove(inputs_embeds, states)
        is_graph = is_step and bool(self.graphs_are_right)
        return self._launch(inputs_embeds, pool, slots, is_graph=is_graph)

    def _launch(
        self, inputs_embeds: torch.Tensor, pool: StatePool, slots: list[int], *, is_graph: bool
    ) -> torch.Tensor:
        """Run on all slots from the first to the last; others than ``slots`` keep their states."""
        first, last = min(slots), max(slots) + 1
        others = sorted(set(range(pool.num_slots)) - set(slots))
        if slots == list(range(first, last)):
            logits = self._run(inputs_embeds, pool, (first, last), is_graph=is_graph)
        else:
            rows = [slot - first for slot in slots]
            shape = (last - first, *inputs_embeds.shape[1:])
            spread = torch.zeros(shape, dtype=inputs_embeds.dtype, device=inputs_embeds.device)
            spread[rows] = inputs_embeds
            logits = self._run(spread, pool, (first, last), is_graph=is_graph)[rows]
        pool.carry_over(others)
        return logits

    def _run(
        self, inputs_embeds: torch.Tensor, pool: StatePool, span: tuple[int, int], *, is_graph: bool
    ) -> torch.Tensor:
        begins = inputs_embeds.shape[1] > 1 and not any(pool.lengths[slice(*span)])
        scan = self._first_scan if begins else None

        def launch(embeds: torch.Tensor) -> torch.Tensor:
            return decode(self.model, embeds, pool.span(*span), scan=scan)

        if not is_graph or span not in pool.warm:
            if inputs_embeds.shape[1] == 1:
                pool.warm.add(span)
            return launch(inputs_embeds)
        key = (*span, pool.half)
        if key not in pool.graphs:
            pool.graphs[key] = CapturedStep(
                launch, inputs_embeds, stream=self.stream, memory=self._graph_memory
            )
        return pool.graphs[key](inputs_embeds)

    def _prove(self, inputs_embeds: torch.Tensor, states: Sequence[KernelsState]) -> bool:
        """Return whether replayed steps give the results of launched ones; keeps the states."""
        pool, slots = self._slots_of(states)

        def take_steps(is_graph: bool) -> Results:
            marks = [state.snapshot() for state in states]
            try:
                logits = []
                for _ in range(PROOF_STEPS):
                    found = self._launch(inputs_embeds, pool, slots, is_graph=is_graph)
                    logits.append(self.stream.to_host(found))
                    _publish(states, 1)
                after = {
                    f"{state.slot}.{name}": array
                    for state in states
                    for name, array in state.snapshot().recurrent.items()
                }
                return after | {"logits": np.stack(logits)}
            finally:
                for state, mark in zip(states, marks, strict=True):
                    state.restore(mark)

        try:
            wrong = first_difference(take_steps)
        except RuntimeError as err:
            logger.warning("decoder: no CUDA graph can be made (%s); steps are launched anew", err)
        else:
            if wrong is None:
                return True
            logger.warning(
                "decoder: a replayed CUDA graph gives another %s than the same steps without it; "
                "steps are launched anew",
                wrong,
            )
        pool.graphs.clear()
        return False

    def _slots_of(self, states: Sequence[KernelsState]) -> tuple[StatePool, list[int]]:
        if not states:
            raise InputError("decoder: expected at least one sequence, got none")
        pool, slots = states[0].pool, [state.slot for state in states]
        if any(state.pool is not pool for state in states) or len(set(slots)) < len(slots):
            raise InputError(
                "decoder: sequences of a batch must be different ones from one call of new_states; "
                "step others alone"
            )
        return pool, slots

    def _check(self, inputs_embeds: NDArray[Any], *, batch: int) -> None:
        dtype = str(inputs_embeds.dtype)
        dims = {"batch": batch}
        self.embeds_spec.check(inputs_embeds.shape, dtype, dims=dims, where="decoder")


def _publish(states: Sequence[KernelsState], seq_len: int) -> None:
    """Make the states just written the present ones."""
    lengths = {state.slot: state.past_len + seq_len for state in states}
    states[0].pool.publish(lengths)


def _has_room(states: Sequence[KernelsState]) -> bool:
    return all(state.past_len + PROOF_STEPS <= state.capacity for state in states)
