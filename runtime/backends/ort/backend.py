"""ONNX Runtime on a CPU as a backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime.backends.base import BackendLimits, BackendName
from longllava_trt.runtime.backends.ort.decoder import Decoder, DecoderState
from longllava_trt.runtime.backends.ort.kernels import Kernels, kernels_named
from longllava_trt.runtime.backends.ort.session import OnnxSession

__all__ = ["OrtBackend"]

Item = TypeVar("Item")


class OrtBackend:
    """ONNX Runtime on a CPU.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        kernels: As for `OnnxSession`.
        num_threads: As for `OnnxSession`.
    """

    name: BackendName = "ort"
    limits = BackendLimits()

    def __init__(
        self, bundle: Path, manifest: Manifest, *, kernels: Kernels, num_threads: int | None
    ) -> None:
        self._kernels = kernels_named(kernels)
        self.materialises_scores = self._kernels == "onnx"
        self._bundle, self._manifest = bundle, manifest
        self._num_threads = num_threads

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
        """Return a new state; this does not load the decoder."""
        return DecoderState.of_stage(self._manifest.stage("decoder").spec, capacity=capacity)

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items as they are: all stages share the cores."""
        return items
