"""The GPU, and its three measured limits: a copy, a matrix product, exponentials."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.timing import time_ms

__all__ = ["gpu_info", "measure_ceilings"]

_PACKAGES = ("numpy", "torch", "triton", "onnx", "onnxruntime", "cuda-bindings", "pytest")
_QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"
_EXP_ROUNDS = 256


def gpu_info(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield what the machine is, then the ceilings."""
    yield {"case": "python", "value": sys.version.split()[0]}
    yield {"case": "machine", "value": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name in _PACKAGES:
        try:
            yield {"case": name, "value": metadata.version(name)}
        except metadata.PackageNotFoundError:
            yield {"case": name, "value": "not installed"}
    yield from _gpu(context)
    yield from measure_ceilings(context)
    yield from _clocks()


def _gpu(context: BenchContext) -> Iterator[dict[str, Any]]:
    import torch

    yield {"case": "torch cuda", "value": str(torch.version.cuda)}
    if context.is_dry:
        return
    found = torch.cuda.get_device_properties(0)
    yield {"case": "gpu_info", "value": found.name}
    yield {"case": "architecture", "value": f"sm{found.major}{found.minor}"}
    yield {"case": "multiprocessors", "value": found.multi_processor_count}
    yield {"case": "memory GiB", "value": round(found.total_memory / 2**30, 1)}
    yield {"case": "L2 MiB", "value": round(found.L2_cache_size / 2**20, 1)}


def _clocks() -> Iterator[dict[str, Any]]:
    """Read clocks right after the measurements, while they are high; change no settings."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    asked = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    for name, value in zip(_QUERY.split(","), said.split(", "), strict=False):
        yield {"case": f"nvidia-smi {name}", "value": value}


def measure_ceilings(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield the rates: each the better of two measurements."""
    for name, amount, ms in (_copy(context), _product(context), _exponentials(context)):
        yield {"case": name, "ms": ms, "per_s": 1e3 * amount / ms}


def _better(call: Any, context: BenchContext) -> float:
    return min(time_ms(call, device=context.device) for _ in range(2))


def _copy(context: BenchContext) -> tuple[str, float, float]:
    import torch

    size = 2**16 if context.is_dry else 2**31
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    return "copied bytes", 2 * size, _better(lambda _: target.copy_(source), context)


def _product(context: BenchContext) -> tuple[str, float, float]:
    import torch

    n = 64 if context.is_dry else 8192
    a, b = (torch.randn(n, n, device=context.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return "bf16 GEMM flops", 2 * n**3, _better(lambda _: torch.mm(a, b, out=out), context)


def _exponentials(context: BenchContext) -> tuple[str, float, float]:
    """Exponentials of values that stay in registers, as the scan's do."""
    import torch

    from benchmarks.gpu.exp_kernel import exponentials

    blocks = 2 if context.is_dry else 8192
    rounds = 4 if context.is_dry else _EXP_ROUNDS
    out = torch.empty(blocks * 1024, device=context.device)

    def call(_: int) -> None:
        exponentials[(blocks,)](out, rounds, block=1024, num_warps=4)

    return "exponentials", blocks * 1024 * rounds, _better(call, context)
