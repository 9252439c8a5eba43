"""Memory of a stage on the device, computed before its weights are read, which may take minutes."""

from __future__ import annotations

import math

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.engine_record import EngineStage, EngineWeight
from longllava_trt.core.errors import InputError
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.one_sequence import of_one_sequence

__all__ = ["require_memory", "stage_bytes"]


def stage_bytes(stage: EngineStage) -> dict[str, int]:
    """Return the bytes that a loaded stage takes, by purpose; small inputs and outputs not counted.

    TensorRT's own memory is known only if the kernels were recorded.
    """
    sizes = {
        spec.name: _nbytes(spec.shape, spec.dtype)
        for spec in map(of_one_sequence, stage.inputs)
        if _fixed(spec.shape)
    }
    return {
        "weights": sum(_weight_bytes(weight) for weight in stage.weights),
        "state": sum(
            sizes[s.input] * (1 if s.mode == "alias" else 2)
            for s in stage.states
            if s.input in sizes
        ),
        "scratch": max((found.activation_bytes for found in stage.kernels.values()), default=0),
    }


def require_memory(cuda: Cuda, name: str, stage: EngineStage) -> None:
    """Raise an error if the device has too little free memory for a stage.

    Raises:
        InputError: Says how much is needed for which purpose.
    """
    needed = stage_bytes(stage)
    free = cuda.free_bytes()
    if sum(needed.values()) > free:
        parts = ", ".join(f"{_gb(nbytes)} of {what}" for what, nbytes in needed.items())
        raise InputError(
            f"{name}: needs {_gb(sum(needed.values()))} of the GPU's memory ({parts}), got "
            f"{_gb(free)} free; build with a smaller --max-context or --chunk, quantise the experts, "
            "or end other programs on the GPU"
        )


def _weight_bytes(weight: EngineWeight) -> int:
    return _nbytes(weight.shape, weight.dtype)


def _fixed(shape: tuple[int | str, ...]) -> bool:
    return all(isinstance(dim, int) for dim in shape)


def _nbytes(shape: tuple[int | str, ...], dtype: str) -> int:
    return math.prod(int(dim) for dim in shape) * np.dtype(dtype).itemsize


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"
