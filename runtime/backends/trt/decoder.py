"""The decoder stage as a TensorRT engine: its state on the device, decode steps as CUDA graphs.

Has the methods of `Decoder`. Where TensorRT compiles kernels for every new length, a call is fed in
pieces of fixed sizes; see `fixed_sizes.py`.

A captured step is used only after a check: some steps are replayed and must give the results of the
same steps without a graph, or be as near to them as two such runs are to each other. Otherwise every
step is launched without a graph, and a warning says which layer differed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.runtime.backends.graph_proof import PROOF_STEPS, first_difference
from longllava_trt.runtime.backends.trt.contexts import EngineContexts, ProfileContext
from longllava_trt.runtime.backends.trt.cuda import CaptureError
from longllava_trt.runtime.backends.trt.engines import Engines
from longllava_trt.runtime.backends.trt.fixed_sizes import cut, token_sizes
from longllava_trt.runtime.backends.trt.session import StagedTensor
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
        self._contexts = EngineContexts(engines, loaded, stream=self._stream)
        self.largest = self._contexts.largest
        """Largest number of positions of one call."""
        self._sizes = token_sizes(self.largest["seq_len"]) if engines.compiles_new_shapes else ()
        carried = {s.input for s in loaded.stage.states} | {s.output for s in loaded.stage.states}
        specs = (*loaded.spec.inputs, *loaded.spec.outputs)
        self._staged = {
            spec.name: StagedTensor(engines, spec, largest=self.largest, stream=self._stream)
            for spec in specs
            if spec.name not in carried
        }
        for name, tensor in self._staged.items():
            self._contexts.bind(name, tensor.address)
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
        pieces = cut(seq_len, self._sizes)
        if len(pieces) > 1:
            return self._feed(inputs_embeds, pieces, state)
        is_step = seq_len == 1
        if is_step and self.graphs_are_right is None and _has_room(state):
            self.graphs_are_right = self._prove(inputs_embeds, state)
        try:
            return self._step(
                inputs_embeds, state, is_graph=is_step and bool(self.graphs_are_right)
            )
        except CaptureError as err:
            # of another sequence's state than the one that was tried
            self.graphs_are_right = False
            self._do_without_graphs(f"no CUDA graph can be made ({err})", state)
            return self._step(inputs_embeds, state, is_graph=False)

    def warm_up(self) -> None:
        """Feed once each number of positions that calls have, so that no user waits for its kernels.

        Takes the memory of one more sequence meanwhile.
        """
        state = self.new_state()
        mark = state.snapshot()
        shape, dtype = self.embeds_spec.shape, self.embeds_spec.dtype
        for size in self._sizes or (self.largest["seq_len"], 1):
            state.restore(mark)
            self.step(np.zeros((1, size, int(shape[-1])), dtype), state)

    def _feed(
        self, inputs_embeds: NDArray[Any], pieces: list[int], state: TrtDecoderState
    ) -> NDArray[np.float32]:
        """Feed pieces one after another; if one fails, none is fed."""
        mark = state.snapshot()
        try:
            for begin, size in zip(np.cumsum([0, *pieces[:-1]]), pieces, strict=True):
                piece = inputs_embeds[:, begin : begin + size]
                logits = self._step(piece, state, is_graph=False)
        except BaseException:
            # a GPU that takes no more work cannot go back either: what failed first is to be told
            with suppress(LongLLaVAError):
                state.restore(mark)
            raise
        return logits

    def _step(
        self, inputs_embeds: NDArray[Any], state: TrtDecoderState, *, is_graph: bool
    ) -> NDArray[np.float32]:
        shapes = {"inputs_embeds": inputs_embeds.shape}
        context = self._contexts.choose(shapes)
        self._staged["inputs_embeds"].write(inputs_embeds)
        self._staged["past_len"].write(np.array([state.past_len], np.int64))
        if is_graph and state.turn in state.graphs:
            state.graphs[state.turn]()
        else:
            context.shape(self._shapes | shapes)
            for name, address in state.bindings().items():
                context.bind(name, address)
            # before a capture too: TensorRT needs a launch after a new shape, and a step may run twice
            context.enqueue(self._stream)
            if is_graph:
                state.graphs[state.turn] = self._capture(context)
                state.graphs[state.turn]()
        logits = self._staged["logits"].begin_read({})
        self._cuda.synchronize(self._stream)
        state.advance(inputs_embeds.shape[1])
        found: NDArray[np.float32] = logits[0, -1].copy()
        return found

    def _capture(self, context: ProfileContext) -> Callable[[], None]:
        """Return a replay of a launch whose shapes and addresses are set."""
        if not self._contexts.can_be_captured(context):
            raise CaptureError("TensorRT says that this engine's launches cannot be captured")
        return self._cuda.capture(lambda: context.enqueue(self._stream), stream=self._stream)

    def _prove(self, inputs_embeds: NDArray[Any], state: TrtDecoderState) -> bool:
        """Return whether replayed steps give the results of launched ones; keeps the state."""
        try:
            wrong = first_difference(
                lambda is_graph: self._try(inputs_embeds, state, is_graph=is_graph)
            )
        except LongLLaVAError as err:
            self._do_without_graphs(f"no CUDA graph can be made ({err})", state)
            return False
        if wrong is None:
            return True
        self._do_without_graphs(
            f"a replayed CUDA graph gives another {wrong} than the same steps without it", state
        )
        return False

    def _do_without_graphs(self, why: str, state: TrtDecoderState) -> None:
        """Drop graphs and the context that they came from: a failed capture may have spoilt it."""
        logger.warning("decoder: %s; steps are launched anew", why)
        state.graphs.clear()
        step = (1, 1, int(self.embeds_spec.shape[-1]))
        self._contexts.renew(self._contexts.choose({"inputs_embeds": step}))

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
