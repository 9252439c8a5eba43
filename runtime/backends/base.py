"""What runs a bundle's stages: ONNX Runtime on a CPU, TensorRT engines or our kernels on a GPU. All else knows protocols.

A backend loads stages when they are asked for, so that a question without images never loads the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from longllava_trt.core.manifest import Manifest
from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.runtime.backends.ort.decoder import Decoder, DecoderState, StateSnapshot
from longllava_trt.runtime.backends.ort.session import Kernels, OnnxSession

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
    from longllava_trt.runtime.backends.trt.engines import Engines

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendName",
    "OrtBackend",
    "SequenceState",
    "StageSession",
    "StepDecoder",
    "TrtBackend",
]

BackendName = Literal["ort", "trt", "kernels"]
BACKENDS: tuple[BackendName, ...] = ("ort", "trt", "kernels")
"""ONNX Runtime; TensorRT; PyTorch with our Triton kernels, in `kernels/backend.py`."""

Item = TypeVar("Item")


class StageSession(Protocol):
    """A loaded stage without carried state."""

    spec: StageSpec

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays of the contract's names, shapes and dtypes."""


class SequenceState(Protocol):
    """What one sequence carries between calls; see `DecoderState`."""

    @property
    def past_len(self) -> int:
        """Positions fed so far."""

    @property
    def capacity(self) -> int:
        """Positions there is room for."""

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions in all."""

    def snapshot(self) -> StateSnapshot:
        """Return the present point."""

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a point."""

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state, as `state_dict` returns it."""

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return the state by input name; views are valid until the next step, copies for ever."""


class StepDecoder(Protocol):
    """A loaded decoder; see `Decoder`. Takes states of its own kind."""

    vocab_size: int

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return the state of a sequence that has not begun."""

    def step(self, inputs_embeds: NDArray[Any], state: Any) -> NDArray[np.float32]:
        """Feed positions [1, seq_len, hidden_size]; returns logits [vocab_size]."""


class Backend(Protocol):
    """Where a bundle runs."""

    materialises_scores: bool
    """Whether attention holds scores for a chunk beside all of its context, so that long contexts want short chunks."""

    def load_stage(self, stage: str) -> StageSession:
        """Load a stage without carried state."""

    def load_decoder(self) -> StepDecoder:
        """Load the decoder."""

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return the state of a sequence that has not begun."""

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield encoded images, made beside the decoder's work where that helps."""


class OrtBackend:
    """ONNX Runtime on a CPU.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        kernels: As for `OnnxSession`.
        num_threads: As for `OnnxSession`.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, *, kernels: Kernels, num_threads: int | None
    ) -> None:
        self.materialises_scores = kernels == "bodies"
        self._bundle, self._manifest = bundle, manifest
        self._kernels, self._num_threads = kernels, num_threads

    def load_stage(self, stage: str) -> OnnxSession:
        """Load a stage."""
        return OnnxSession(
            self._bundle,
            self._manifest,
            stage,
            kernels=self._kernels,
            num_threads=self._num_threads,
        )

    def load_decoder(self) -> Decoder:
        """Load the decoder."""
        return Decoder(self.load_stage("decoder"))

    def new_state(self, *, capacity: int) -> DecoderState:
        """Return a fresh state; the decoder need not be loaded for it."""
        return DecoderState.of_stage(self._manifest.stage("decoder").spec, capacity=capacity)

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield them as they are: all stages share the cores."""
        return items


class TrtBackend:
    """TensorRT engines on the GPU at hand.

    Args:
        engines: The bundle's, from `open_engines`.
    """

    materialises_scores = False

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._decoder: TrtDecoder | None = None

    def load_stage(self, stage: str) -> StageSession:
        """Load a stage and its weights."""
        from longllava_trt.runtime.backends.trt.session import TrtSession

        return TrtSession(self._engines, stage)

    def load_decoder(self) -> TrtDecoder:
        """Load the decoder and its weights, once."""
        from longllava_trt.runtime.backends.trt.decoder import TrtDecoder

        if self._decoder is None:
            self._decoder = TrtDecoder(self._engines)
        return self._decoder

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return a fresh state on the device."""
        return self.load_decoder().new_state(capacity=capacity)

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield them one ahead: vision and decoder have streams of their own."""
        from longllava_trt.runtime.inputs.prefetch import prefetch

        return prefetch(items)
