"""List of the backends that this machine can run, whatever the bundle; `doctor` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.plugins_trt.registry import import_tensorrt
from longllava_trt.runtime.backends.base import BackendName
from longllava_trt.runtime.backends.kernels.requirements import is_interpreted, missing

__all__ = ["UsableBackend", "describe_auto", "find_backends"]


class UsableBackend(NamedTuple):
    """Answer for one backend: usable here, or why not."""

    usable: bool
    on_gpu: bool
    detail: str
    """Hardware it runs on; or the missing part, and the remedy."""


def find_backends() -> Mapping[BackendName, UsableBackend]:
    """Look at every backend on this machine; imports what is there of them."""
    target = current_target()
    return {"ort": _ort(), "trt": _trt(target), "kernels": _kernels()}


def describe_auto(found: Mapping[BackendName, UsableBackend]) -> str:
    """Say what `open_backend` takes without a name.

    Args:
        found: From `find_backends`.
    """
    on_gpu = [name for name in ("trt", "kernels") if found[name].usable and found[name].on_gpu]
    if not on_gpu:
        return "ort: no backend can use an NVIDIA GPU here"
    where = {"trt": "trt where a bundle has engines for this GPU"}
    return f"{', else '.join(where.get(name, name) for name in [*on_gpu, 'ort'])}"


def _ort() -> UsableBackend:
    try:
        import onnxruntime
    except ImportError as err:
        return UsableBackend(False, False, f"ONNX Runtime cannot be imported ({err}); reinstall it")
    detail = f"runs float32 bundles on the CPU, ONNX Runtime {onnxruntime.__version__}"
    return UsableBackend(True, False, detail)


def _trt(target: str | None) -> UsableBackend:
    from longllava_trt.runtime.backends.trt.cuda import Cuda

    try:
        import_tensorrt()
        if target is None:
            lack = "needs an NVIDIA GPU and its driver; a CPU runs ONNX bundles"
            return UsableBackend(False, True, lack)
        Cuda()
    except LongLLaVAError as err:
        return UsableBackend(False, True, str(err))
    return UsableBackend(True, True, f"runs engines for {target}")


def _kernels() -> UsableBackend:
    lack = missing("bfloat16")
    if lack:
        return UsableBackend(False, True, lack)
    if is_interpreted():
        detail = "runs bundles on the CPU, under Triton's interpreter: slow, for tests"
        return UsableBackend(True, False, detail)
    return UsableBackend(True, True, "runs bundles on the GPU")
