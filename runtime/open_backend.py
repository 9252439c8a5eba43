"""Open a backend by its name, or the best for this machine; only what is asked for is imported."""

from __future__ import annotations

import logging
from pathlib import Path

from longllava_trt.core.engine_record import EngineRecord, engine_folders
from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.core.manifest import Manifest
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.runtime.backends.base import Backend, BackendName
from longllava_trt.runtime.backends.kernels.requirements import check_machine, is_interpreted
from longllava_trt.runtime.options import RunOptions

__all__ = ["open_backend"]

logger = logging.getLogger(__name__)

_ON_GPU: tuple[BackendName, ...] = ("trt", "kernels")
"""Best first."""


def open_backend(
    bundle: Path, manifest: Manifest, options: RunOptions, *, max_context: int
) -> Backend:
    """Open a backend for a bundle; loads no stage.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        options: Which backend, and its own options.
        max_context: Most positions of one sequence.

    Raises:
        LongLLaVAError: If the bundle or the machine lacks what the backend needs.
    """
    if options.backend != "auto":
        return _open(options.backend, bundle, manifest, options, max_context)
    target = current_target()
    if target is not None:
        return _open_best(target, bundle, manifest, options, max_context)
    logger.info("backend ort: this machine has no usable NVIDIA GPU")
    return _open("ort", bundle, manifest, options, max_context)


def _open_best(
    target: str, bundle: Path, manifest: Manifest, options: RunOptions, max_context: int
) -> Backend:
    """Open the first backend that runs the bundle on a GPU; on the CPU if none does, and say why."""
    lacks: list[str] = []
    for name in _ON_GPU:
        lack = _lack(name, bundle, target)
        if lack is None:
            try:
                backend = _open(name, bundle, manifest, options, max_context)
            except LongLLaVAError as err:
                lack = str(err)
            else:
                why = f"; not {', '.join(lacks)}" if lacks else ""
                logger.info("backend %s: runs this bundle on the GPU (%s)%s", name, target, why)
                return backend
        lacks.append(f"{name} ({lack})")
    # slower by a hundred times, so nobody should have to ask for it
    logger.warning("backend ort: not the GPU (%s) but the CPU; not %s", target, ", ".join(lacks))
    return _open("ort", bundle, manifest, options, max_context)


def _lack(name: BackendName, bundle: Path, target: str) -> str | None:
    """Return why not to try a backend at all: found without importing anything of it."""
    if name == "kernels":
        return "TRITON_INTERPRET=1 sends kernels to the CPU" if is_interpreted() else None
    try:
        targets = {EngineRecord.load(folder).target for folder in engine_folders(bundle)}
    except LongLLaVAError as err:
        return str(err)
    if target in targets:
        return None
    return f"the bundle has engines for {', '.join(sorted(targets)) or 'no GPU'}"


def _open(
    name: BackendName, bundle: Path, manifest: Manifest, options: RunOptions, max_context: int
) -> Backend:
    if name == "trt":
        from longllava_trt.runtime.backends.trt.backend import TrtBackend
        from longllava_trt.runtime.backends.trt.engines import open_engines

        return TrtBackend(open_engines(bundle))
    if name == "kernels":
        # before the backend is imported, which needs what may be missing
        check_machine(manifest.dtype)
        from longllava_trt.runtime.backends.kernels.backend import KernelsBackend

        return KernelsBackend(
            bundle,
            manifest,
            max_context=max_context,
            chunk_size=options.chunk_size,
            scan=options.scan,
        )
    from longllava_trt.runtime.backends.ort.backend import OrtBackend

    return OrtBackend(bundle, manifest, kernels=options.kernels, num_threads=options.num_threads)
