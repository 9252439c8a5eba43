"""What a machine must have to run our kernels, and what this one lacks. Asks; imports PyTorch only to ask."""

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
    """Of one sequence of the longest context."""
    work: int
    """Of one chunk, more or less."""
    max_context: int
    is_quantised: bool
    """Whether experts are, or there are none."""


def is_interpreted() -> bool:
    """Say whether kernels run on the CPU, under Triton's interpreter: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(dtype: str = "float32") -> str | None:
    """Return what this machine lacks, and what to do; None if it can run our kernels.

    Args:
        dtype: Of arithmetic.
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
            f"needs an NVIDIA GPU, and {why}; use --backend ort, or set TRITON_INTERPRET=1 to run the kernels "
            "on the CPU, slowly, for tests"
        )
    card, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if dtype == "bfloat16" and card < _LEAST_BF16:
        return (
            f"needs a GPU with bfloat16, compute capability 8.0 or later, got {name} with {card[0]}.{card[1]}; "
            "export the bundle with --dtype float16"
        )
    return None


def check_machine(dtype: str) -> None:
    """Raise `MissingDependencyError` if this machine lacks something."""
    problem = missing(dtype)
    if problem:
        raise MissingDependencyError(f"kernels: {problem}")


def check_memory(need: MemoryNeed, *, free: int) -> None:
    """Refuse what does not fit on the device, before anything is loaded.

    Args:
        need: What it takes.
        free: Bytes of the device.

    Raises:
        InputError: Says what would fit.
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
