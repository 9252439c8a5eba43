"""Machine, versions and bundle of a measurement, without which its figures mean nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.core.manifest import MANIFEST_FILE
from longllava_trt.core.version import __version__

if TYPE_CHECKING:
    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["describe_bundle", "describe_machine", "describe_versions"]

_PACKAGES = (
    *("onnxruntime", "onnxruntime-extensions", "onnx", "numba", "numpy", "ml-dtypes", "Pillow"),
    *("tokenizers", "tensorrt", "tensorrt-rtx", "cuda-python"),
)


def describe_machine() -> dict[str, Any]:
    """Return processor, usable cores, memory and system; None for values that are not known."""
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), flags=re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": usable,
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": platform.platform(),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, of this project and of the installed packages that it uses."""
    found = {"longllava-trt": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_bundle(model: LongLLaVA) -> dict[str, Any]:
    """Return a bundle's identity; the manifest's hash is enough, since it has all files' hashes."""
    manifest = model.manifest
    return {
        "name": model.bundle.resolve().name,
        "manifest_sha256": hashlib.sha256((model.bundle / MANIFEST_FILE).read_bytes()).hexdigest(),
        "dtype": manifest.dtype,
        "moe_quant": manifest.moe_quant,
        "weight_bytes": sum(weight.nbytes for weight in manifest.weights.values()),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
