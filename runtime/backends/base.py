"""Protocols of what runs a bundle's stages; concrete backends are in folders of their own.

A backend loads stages when they are asked for, so that a question without images never loads the
vision tower. Nothing concrete is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from longllava_trt.core.stage_spec import StageSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BACKENDS",
    "CPU_CHUNK",
    "CPU_VISION_BATCH",
    "GPU_CHUNK",
    "GPU_VISION_BATCH",
    "SCANS",
    "Backend",
    "BackendLimits",
    "BackendName",
    "ScanName",
    "SequenceState",
    "StageSession",
    "StateSnapshot",
    "StepDecoder",
]

BackendName = Literal["ort", "trt", "kernels"]
BACKENDS: tuple[BackendName, ...] = ("ort", "trt", "kernels")
"""ONNX Runtime; TensorRT; PyTorch with our Triton kernels, in `kernels/backend.py`."""

ScanName = Literal["ours", "mamba-ssm"]
SCANS: tuple[ScanName, ...] = ("ours", "mamba-ssm")

CPU_CHUNK = 512
GPU_CHUNK = 4096
"""Positions fed at a time where nobody says another number: a GPU wants more of them to be busy."""
CPU_VISION_BATCH = 4
GPU_VISION_BATCH = 16
"""Images encoded at a time, likewise."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendLimits:
    """Largest sizes that a backend takes, None where it sets no limit of its own, and the sizes it runs best with."""

    capacity: int | None = None
    """Positions of one sequence, prompt and answer together."""
    longest_chunk: int | None = None
    """Positions fed to the decoder in one call."""
    chunk_sizes: tuple[int, ...] = ()
    """Numbers of positions that the decoder's calls are cut into, most first; empty if not cut."""
    largest_vision_batch: int | None = None
    """Images encoded in one call."""
    num_slots: int = 1
    """Sequences decoded in one call."""
    preferred_chunk: int = CPU_CHUNK
    """Positions fed in one call unless the user says another number; not above `longest_chunk`."""
    preferred_vision_batch: int = CPU_VISION_BATCH
    """Images encoded in one call unless the user says another number; not above `largest_vision_batch`."""


class StateSnapshot(NamedTuple):
    """Point to which a state can go back, as long as it has not gone back beyond it."""

    past_len: int
    recurrent: Mapping[str, NDArray[Any]]
    """Copies of what is not appended to, by input name; never changed."""


class StageSession(Protocol):
    """A loaded stage without carried state."""

    spec: StageSpec

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays of the contract's names, shapes and dtypes."""


class SequenceState(Protocol):
    """State that one sequence carries between calls.

    A sequence relies on one thing: after an exception or an interrupt anywhere, in `restore` or in a
    decoder's `step` too, `restore` to an earlier snapshot gives exactly that point.
    """

    @property
    def past_len(self) -> int:
        """Positions fed so far."""

    @property
    def capacity(self) -> int:
        """Positions there is room for."""

    def reserve(self, capacity: int) -> None:
        """Make room for this many positions in all."""

    def snapshot(self) -> StateSnapshot:
        """Return the present point."""

    def restore(self, mark: StateSnapshot) -> None:
        """Go back to a point."""

    def load_state_dict(self, past_len: int, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take over a state, as `state_dict` returns it; drop this one if that fails."""

    def state_dict(self, *, copy: bool = False) -> dict[str, NDArray[Any]]:
        """Return the state by input name; views are valid until the next step, copies for ever."""


class StepDecoder(Protocol):
    """A loaded decoder. Takes states of its own kind."""

    vocab_size: int

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return the state of a sequence that has not begun."""

    def step(self, inputs_embeds: NDArray[Any], state: Any) -> NDArray[np.float32]:
        """Feed positions [1, seq_len, hidden_size]; returns logits [vocab_size]."""


class Backend(Protocol):
    """Place where a bundle runs."""

    name: BackendName
    """Name in `RunOptions.backend`."""
    materialises_scores: bool
    """Whether attention holds scores for a chunk beside all of its context, so that long contexts
    want short chunks."""

    @property
    def limits(self) -> BackendLimits:
        """Largest sizes it takes, known before any stage is loaded."""

    def load_stage(self, stage: str) -> StageSession:
        """Load a stage without carried state."""

    def load_decoder(self) -> StepDecoder:
        """Load the decoder."""

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return the state of a sequence that has not begun."""

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield encoded images, made beside the decoder's work where that helps."""
