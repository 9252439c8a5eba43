"""Requirements of our kernels, and those that this machine does not meet.

PyTorch is imported only when they are checked.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from longllava_trt.core.errors import InputError, MissingDependencyError

__all__ = ["MemoryNeed", "check_machine", "check_memory", "is_interpreted", "missing"]

_LEAST = {"torch": (2, 11), "triton": (3, 6)}
_LEAST_BF16 = (8, 0)
_GIB = 2**30


class MemoryNeed(NamedTuple):
    """Bytes on the device."""

    weights: int
    caches: int
    """Bytes of one sequence of the longest context."""
    work: int
    """Bytes of one chunk, about."""
    max_context: int
    is_quantised: bool
    """Whether the experts are quantised, or the model has none."""


def is_interpreted() -> bool:
    """Return whether kernels run on the CPU, under Triton's interpreter: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(dtype: str = "float32") -> str | None:
    """Return a text that says what this machine lacks, and what to do; None if it lacks nothing.

    Args:
        dtype: Dtype of arithmetic.
    """
    for package, least in _LEAST.items():
        found = _version(package)
        wanted = ".".join(map(str, least))
        if found is None or found < least:
            has = "none" if found is None else ".".join(map(str, found))
            return f"needs {package} {wanted} or later, got {has}; pip install 'longllava-trt[kernels]'"
    if is_interpreted():
        return None
    try:
        import torch
    except (ImportError, OSError) as err:
        return f"needs torch, which is installed but cannot be loaded ({err}); reinstall it"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"PyTorch for CUDA {built} sees none" if built else "this PyTorch is built without CUDA"
        )
        return (
            f"needs an NVIDIA GPU, and {why}; use --backend ort, or set TRITON_INTERPRET=1 to run "
            "the kernels on the CPU, slowly, for tests"
        )
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if dtype == "bfloat16" and capability < _LEAST_BF16:
        return (
            "needs a GPU with bfloat16, compute capability 8.0 or later, got "
            f"{name} with {capability[0]}.{capability[1]}; export the bundle with --dtype float16"
        )
    return None


def check_machine(dtype: str) -> None:
    """Raise `MissingDependencyError` if this machine lacks something."""
    problem = missing(dtype)
    if problem:
        raise MissingDependencyError(f"kernels: {problem}")


def check_memory(need: MemoryNeed, *, free: int) -> None:
    """Raise an error if the model does not fit on the device, before anything is loaded.

    Args:
        need: Bytes that it takes.
        free: Free bytes of the device.

    Raises:
        InputError: Says what was needed, what is free, and what would fit.
    """
    total = need.weights + need.caches + need.work
    if total <= free:
        return
    left = free - need.weights - need.work
    positions = left * need.max_context // max(need.caches, 1) // 1000 * 1000
    cures = []
    if positions > 0:
        cures.append(f"pass --max-context {positions}")
    if not need.is_quantised:
        cures.append("export the bundle with --moe-quant w8a16")
    cures.append("use a larger GPU")
    raise InputError(
        f"kernels: need {total / _GIB:.1f} GiB on the GPU (weights {need.weights / _GIB:.1f}, caches of "
        f"{need.max_context} positions {need.caches / _GIB:.1f}, work {need.work / _GIB:.1f}), got "
        f"{free / _GIB:.1f} free; {', or '.join(cures)}"
    )


def _version(package: str) -> tuple[int, ...] | None:
    """Return major and minor version, None where it is not installed."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return None
    return tuple(int(number) for number in re.findall(r"\d+", found)[:2])
