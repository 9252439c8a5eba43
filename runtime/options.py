"""Options of a run: backend, kernels, and how much is fed at a time."""

from __future__ import annotations

from dataclasses import dataclass

from longllava_trt.models.contracts import TRAINED_CONTEXT
from longllava_trt.runtime.backends.base import BACKENDS, BackendName
from longllava_trt.runtime.backends.ort.kernels import Kernels, kernels_named
from longllava_trt.runtime.option_checks import check, choice, whole_number

__all__ = ["RunOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a bundle is run."""

    backend: BackendName = "ort"
    """`ort`, ONNX Runtime on the CPU; `trt`, the bundle's TensorRT engines on the GPU at hand; `kernels`, PyTorch with this
    project's Triton kernels there."""
    kernels: Kernels = "fast"
    """Of ONNX Runtime: `fast`, or `onnx` for plain ONNX Runtime with nothing registered."""
    num_threads: int | None = None
    """Threads of one operator; by default one a core."""
    chunk_size: int = 512
    """Prompt positions fed to the decoder at a time."""
    vision_batch: int = 4
    """Images encoded at a time."""
    max_context: int = TRAINED_CONTEXT
    """Most positions of prompt and answer together; the model was trained up to this length."""

    def __post_init__(self) -> None:
        check(
            "run",
            [
                choice("backend", self.backend, BACKENDS),
                whole_number("num_threads", self.num_threads, at_least=1, or_none=True),
                whole_number("chunk_size", self.chunk_size, at_least=1),
                whole_number("vision_batch", self.vision_batch, at_least=1),
                whole_number("max_context", self.max_context, at_least=1),
            ],
        )
        object.__setattr__(self, "kernels", kernels_named(self.kernels))
