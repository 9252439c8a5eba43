"""Options of a run: backend, kernels, and how much is fed at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longllava_trt.runtime.backends.base import BACKENDS, SCANS, ScanName
from longllava_trt.runtime.backends.ort.kernels import Kernels, kernels_named
from longllava_trt.runtime.option_checks import check, choice, name_or_none, whole_number

__all__ = ["BackendChoice", "RunOptions"]

BackendChoice = Literal["auto", "ort", "trt", "kernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a bundle is run."""

    backend: BackendChoice = "auto"
    """`ort`, ONNX Runtime on the CPU; `trt`, the bundle's TensorRT engines on the GPU at hand; `kernels`, PyTorch with this
    project's Triton kernels there; `auto`, the first of `trt` and `kernels` that runs this bundle on this machine, else `ort`."""
    kernels: Kernels = "fast"
    """Of ONNX Runtime: `fast`, or `onnx` for plain ONNX Runtime with nothing registered."""
    scan: ScanName = "ours"
    """Of `kernels`: `mamba-ssm` takes that package's selective scan for the first chunk of a prompt, which begins without a
    state; all that comes later has this project's."""
    num_threads: int | None = None
    """Threads of one operator; by default one a core."""
    chunk_size: int | None = None
    """Prompt positions fed to the decoder at a time; by default what the backend runs best with."""
    vision_batch: int | None = None
    """Images encoded at a time; by default what the backend runs best with."""
    max_context: int | None = None
    """Most positions of prompt and answer together; by default as many as the model was trained for."""
    prompt_format: str | None = None
    """Name of the chat format of prompts; by default the checkpoint's own."""

    def __post_init__(self) -> None:
        check(
            "run",
            [
                choice("backend", self.backend, ("auto", *BACKENDS)),
                choice("scan", self.scan, SCANS),
                self._unused_scan(),
                name_or_none("prompt_format", self.prompt_format),
                whole_number("num_threads", self.num_threads, at_least=1, or_none=True),
                whole_number("chunk_size", self.chunk_size, at_least=1, or_none=True),
                whole_number("vision_batch", self.vision_batch, at_least=1, or_none=True),
                whole_number("max_context", self.max_context, at_least=1, or_none=True),
            ],
        )
        object.__setattr__(self, "kernels", kernels_named(self.kernels))

    def _unused_scan(self) -> str | None:
        if self.scan == "mamba-ssm" and self.backend != "kernels":
            return f"scan mamba-ssm needs backend kernels, got {self.backend}"
        return None
