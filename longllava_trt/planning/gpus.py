"""GPUs by name, or by the three numbers that a plan needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from longllava_trt.core.errors import InputError

__all__ = ["GPUS", "Gpu", "find_gpu"]

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    memory_bytes: int
    flops: float
    """Dense bfloat16 operations per second with float32 sums, without sparsity."""
    bandwidth: float
    """Bytes per second between memory and chip."""
    sm: int | None = None
    """Compute capability, two digits or three; None if it was not named."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 40 * _GIB, 312e12, 1555e9, 80),
        Gpu("a100-80gb", 80 * _GIB, 312e12, 2039e9, 80),
        Gpu("h100-80gb", 80 * _GIB, 989e12, 3350e9, 90),
        Gpu("h200", 141 * 10**9, 989e12, 4800e9, 90),
        Gpu("rtx-4090", 24 * _GIB, 165e12, 1008e9, 89),
    )
}
"""Values from the makers' data sheets; SXM modules if there are several."""

_FREE_FORM = re.compile(
    r"(?P<gib>[\d.]+)\s*GiB\s*\+\s*(?P<tflops>[\d.]+)\s*TFLOPs?\s*\+\s*(?P<gbs>[\d.]+)\s*GB/s",
    re.IGNORECASE,
)


def find_gpu(text: str) -> Gpu:
    """Return a GPU by name, or from memory, arithmetic and bandwidth.

    Args:
        text: A key of `GPUS`, or such as ``48GiB+150TFLOPs+864GB/s``.

    Raises:
        InputError: If it is neither.
    """
    gpu = GPUS.get(text.lower())
    if gpu is not None:
        return gpu
    match = _FREE_FORM.fullmatch(text.strip())
    try:
        numbers = [float(number) for number in match.groups()] if match else []
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise InputError(
            f"plan: GPU must be one of {', '.join(GPUS)}, or three numbers such as "
            f"'48GiB+150TFLOPs+864GB/s', got '{text}'"
        )
    gib, tflops, gbs = numbers
    return Gpu(text.strip(), int(gib * _GIB), tflops * 1e12, gbs * 1e9)
