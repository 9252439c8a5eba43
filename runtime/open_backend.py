"""Open a backend by its name; only the one that is asked for is imported."""

from __future__ import annotations

from pathlib import Path

from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime.backends.base import Backend
from longllava_trt.runtime.options import RunOptions

__all__ = ["open_backend"]


def open_backend(bundle: Path, manifest: Manifest, options: RunOptions) -> Backend:
    """Open a backend for a bundle; loads no stage.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        options: Which backend, and its own options.

    Raises:
        LongLLaVAError: If the bundle or the machine lacks what the backend needs.
    """
    if options.backend == "trt":
        from longllava_trt.runtime.backends.trt.backend import TrtBackend
        from longllava_trt.runtime.backends.trt.engines import open_engines

        return TrtBackend(open_engines(bundle))
    if options.backend == "kernels":
        from longllava_trt.runtime.backends.kernels.requirements import check_machine

        # before the backend is imported, which needs what may be missing
        check_machine(manifest.dtype)
        from longllava_trt.runtime.backends.kernels.backend import KernelsBackend

        return KernelsBackend(
            bundle, manifest, max_context=options.max_context, chunk_size=options.chunk_size
        )
    from longllava_trt.runtime.backends.ort.backend import OrtBackend

    return OrtBackend(bundle, manifest, kernels=options.kernels, num_threads=options.num_threads)
