"""Open a backend by its name; only the one that is asked for is imported."""

from __future__ import annotations

from pathlib import Path

from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime.backends.base import Backend, BackendName
from longllava_trt.runtime.backends.ort.kernels import Kernels

__all__ = ["open_backend"]


def open_backend(
    name: BackendName,
    bundle: Path,
    manifest: Manifest,
    *,
    kernels: Kernels,
    num_threads: int | None,
) -> Backend:
    """Open a backend for a bundle; loads no stage.

    Args:
        name: One of `BACKENDS`.
        bundle: Folder.
        manifest: Its manifest.
        kernels: For ONNX Runtime.
        num_threads: For ONNX Runtime.

    Raises:
        LongLLaVAError: If the bundle or the machine lacks what the backend needs.
    """
    if name == "trt":
        from longllava_trt.runtime.backends.trt.backend import TrtBackend
        from longllava_trt.runtime.backends.trt.engines import open_engines

        return TrtBackend(open_engines(bundle))
    from longllava_trt.runtime.backends.ort.backend import OrtBackend

    return OrtBackend(bundle, manifest, kernels=kernels, num_threads=num_threads)
