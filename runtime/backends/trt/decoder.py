"""The decoder stage as a TensorRT engine: its state on the device, decode steps as CUDA graphs.

Has the methods of `Decoder`. A captured step is used only after a check: some steps are replayed
and must give the results of the same steps without a graph, or be as near to them as two such runs
are to each other. Otherwise every step is launched without a graph, and a warning says which layer
differed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.runtime.backends.graph_proof import PROOF_STEPS, first_difference
from longllava_trt.runtime.backends.trt.engines import Engines
from longllava_trt.runtime.backends.trt.session import (
    StagedTensor,
    choose,
    largest_dims,
    make_contexts,
)
from longllava_trt.runtime.backends.trt.state import TrtDecoderState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Results = dict[str, NDArray[Any]]

__all__ = ["TrtDecoder"]

logger = logging.getLogger(__name__)


class TrtDecoder:
    """Runs a decoder's engine.

    Args:
        engines: Engines of the bundle.
        use_graphs: Replay decode steps as graphs, if the check finds them right.
    """

    def __init__(self, engines: Engines, *, use_graphs: bool = True) -> None:
        loaded = engines.load("decoder")
        self._loaded, self._cuda = loaded, engines.cuda
        self._stream = engines.cuda.stream()
        self._contexts, self._memory = make_contexts(engines, loaded, stream=self._stream)
        self.largest = largest_dims(loaded)
        """Largest number of positions of one call."""
        carried = {s.input for s in loaded.stage.states} | {s.output for s in loaded.stage.states}
        specs = (*loaded.spec.inputs, *loaded.spec.outputs)
        self._staged = {
            spec.name: StagedTensor(engines, spec, largest=self.largest, stream=self._stream)
            for spec in specs
            if spec.name not in carried
        }
        for context in self._contexts.values():
            for name, tensor in self._staged.items():
                context.bind(name, tensor.address)
        self._shapes = {
            spec.name: tuple(int(dim) for dim in spec.shape)
            for spec in loaded.spec.inputs
            if all(isinstance(dim, int) for dim in spec.shape)
        }
        """Of inputs that are the same in every call."""
        self.embeds_spec = self._staged["inputs_embeds"].spec
        """Contract of the embeddings that `step` takes."""
        self.vocab_size = int(loaded.spec.outputs[0].shape[-1])
        self.graphs_are_right: bool | None = None if use_graphs else False
        """None until the first decode step has tried."""

    def new_state(self, *, capacity: int = 0) -> TrtDecoderState:
        """Return the state of a new sequence; ``capacity`` is ignored, the engine has its own."""
        del capacity
        return TrtDecoderState(self._cuda, self._loaded, stream=self._stream)

    def step(self, inputs_embeds: NDArray[Any], state: TrtDecoderState) -> NDArray[np.float32]:
        """Feed one or more positions and advance the state.

        Args:
            inputs_embeds: [1, seq_len, hidden_size], of the bundle's dtype.
            state: Changed in place; if the call fails it is as it was.

        Returns:
            Logits of the token that follows. [vocab_size], float32.

        Raises:
            InputError: If the state has no room for them, or the engine takes fewer in one call.
        """
        self.embeds_spec.check(
            inputs_embeds.shape, str(inputs_embeds.dtype), dims={}, where="decoder"
        )
        seq_len = inputs_embeds.shape[1]
        state.make_room(seq_len)
        is_step = seq_len == 1
        if is_step and self.graphs_are_right is None and _has_room(state):
            self.graphs_are_right = self._prove(inputs_embeds, state)
        return self._step(inputs_embeds, state, is_graph=is_step and bool(self.graphs_are_right))

    def _step(
        self, inputs_embeds: NDArray[Any], state: TrtDecoderState, *, is_graph: bool
    ) -> NDArray[np.float32]:
        shapes = {"inputs_embeds": inputs_embeds.shape}
        context = choose(self._contexts, shapes, largest=self.largest, where="decoder")

        def launch() -> None:
            context.shape(self._shapes | shapes)
            for name, address in state.bindings().items():
                context.bind(name, address)
            context.enqueue(self._stream)

        self._staged["inputs_embeds"].write(inputs_embeds)
        self._staged["past_len"].write(np.array([state.past_len], np.int64))
        if not is_graph:
            launch()
        else:
            if state.turn not in state.graphs:
                # TensorRT needs a launch between a new shape and a capture; a step may run twice
                launch()
                state.graphs[state.turn] = self._cuda.capture(launch, stream=self._stream)
            state.graphs[state.turn]()
        logits = self._staged["logits"].begin_read({})
        self._cuda.synchronize(self._stream)
        state.advance(inputs_embeds.shape[1])
        found: NDArray[np.float32] = logits[0, -1].copy()
        return found

    def _prove(self, inputs_embeds: NDArray[Any], state: TrtDecoderState) -> bool:
        """Return whether replayed steps give the results of launched ones; keeps the state."""
        try:
            wrong = first_difference(
                lambda is_graph: self._try(inputs_embeds, state, is_graph=is_graph)
            )
        except LongLLaVAError as err:
            logger.warning("decoder: no CUDA graph can be made (%s); steps are launched anew", err)
            state.graphs.clear()
            return False
        if wrong is None:
            return True
        logger.warning(
            "decoder: a replayed CUDA graph gives another %s than the same steps without it; "
            "steps are launched anew",
            wrong,
        )
        state.graphs.clear()
        return False

    def _try(
        self, inputs_embeds: NDArray[Any], state: TrtDecoderState, *, is_graph: bool
    ) -> Results:
        """Run some steps and go back; returns the states layer by layer, then the logits."""
        mark = state.snapshot()
        try:
            logits = [
                self._step(inputs_embeds, state, is_graph=is_graph) for _ in range(PROOF_STEPS)
            ]
            return dict(state.snapshot().recurrent) | {"logits": np.stack(logits)}
        finally:
            state.restore(mark)


def _has_room(state: TrtDecoderState) -> bool:
    return state.past_len + PROOF_STEPS <= state.capacity
