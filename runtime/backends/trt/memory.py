"""Memory of a stage on the device, computed before its weights are read, which may take minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.dtypes import DTYPES, FLOAT_NAMES
from longllava_trt.core.engine_record import EngineStage, StateBinding
from longllava_trt.core.errors import InputError
from longllava_trt.core.weight_formats import MOE_QUANTS, WEIGHT_FORMATS, MoeQuant
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.one_sequence import of_one_sequence

__all__ = ["require_memory", "stage_bytes"]


def stage_bytes(stage: EngineStage) -> dict[str, int]:
    """Return the bytes that a loaded stage takes, by purpose; small inputs and outputs not counted.

    TensorRT's own memory is known only if the kernels were recorded.
    """
    caches, states = (
        sum(nbytes for state, nbytes in _carried(stage) if state.mode == mode)
        for mode in ("alias", "double-buffer")
    )
    return {
        "weights": sum(_nbytes(weight.shape, weight.dtype) for weight in stage.weights),
        "keys and values": caches,
        "states": 2 * states,
        "scratch": max((found.activation_bytes for found in stage.kernels.values()), default=0),
    }


def require_memory(cuda: Cuda, name: str, stage: EngineStage) -> None:
    """Raise an error if the device has too little free memory for a stage.

    Raises:
        InputError: Says how much is needed for which purpose, and what would fit.
    """
    needed = stage_bytes(stage)
    free = cuda.free_bytes()
    if sum(needed.values()) > free:
        parts = ", ".join(f"{_gb(nbytes)} of {what}" for what, nbytes in needed.items() if nbytes)
        raise InputError(
            f"{name}: needs {_gb(sum(needed.values()))} of the GPU's memory ({parts}), got "
            f"{_gb(free)} free; {_remedy(stage, needed, free)}, or end other programs on the GPU"
        )


def _remedy(stage: EngineStage, needed: Mapping[str, int], free: int) -> str:
    """Return what would fit: a shorter context first, then smaller experts."""
    if not needed["keys and values"]:
        return "build with a smaller --vision-batch or --chunk"
    for quant in MOE_QUANTS:
        saved = _saved_by(stage, quant)
        context = _largest_context(stage, needed, free + saved)
        if context is None or (quant != "none" and not saved):
            continue
        if quant == "none":
            return f"build with --max-context {context}, which fits"
        return f"export with --moe-quant {quant} and build with --max-context {context}, which fits"
    return "no --max-context and no format of experts would fit: use a GPU with more memory"


def _largest_context(stage: EngineStage, needed: Mapping[str, int], free: int) -> int | None:
    """Return the most positions, up to what the engine has, whose keys and values fit; None if a chunk's do not."""
    specs = {spec.name: spec for spec in stage.inputs}
    caches = [specs[state.input].shape[2] for state, _ in _carried(stage) if state.mode == "alias"]
    capacity = min(int(size) for size in caches)
    room = free - sum(needed.values()) + needed["keys and values"]
    context = min(room * capacity // needed["keys and values"], capacity)
    chunk = max(
        profile["inputs_embeds"].max[1]
        for profile in stage.profiles.values()
        if "inputs_embeds" in profile
    )
    return context if context >= chunk else None


def _saved_by(stage: EngineStage, quant: MoeQuant) -> int:
    """Return the bytes that experts in another format would save."""
    saved = 0
    for weight in stage.weights:
        is_scales = weight.name.endswith("_scales")
        if ".experts." in weight.name and weight.dtype in FLOAT_NAMES and not is_scales:
            rows, columns = math.prod(weight.shape[:-1]), weight.shape[-1]
            itemsize = DTYPES[weight.dtype].itemsize
            saved += _nbytes(weight.shape, weight.dtype)
            saved -= WEIGHT_FORMATS[quant].nbytes(rows, columns, itemsize=itemsize)
    return saved


def _carried(stage: EngineStage) -> Iterator[tuple[StateBinding, int]]:
    """Yield each carried state with the bytes of one buffer of it, for one sequence."""
    specs = {spec.name: of_one_sequence(spec) for spec in stage.inputs}
    for state in stage.states:
        spec = specs[state.input]
        if all(isinstance(dim, int) for dim in spec.shape):
            yield state, _nbytes(spec.shape, spec.dtype)


def _nbytes(shape: tuple[int | str, ...], dtype: str) -> int:
    return math.prod(int(dim) for dim in shape) * np.dtype(dtype).itemsize


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 10**8 else f"{nbytes / 1e6:.1f} MB"
