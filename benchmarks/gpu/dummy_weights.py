"""Bundles of the published sizes from `prepare`, with random numbers instead of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.engine_record import engine_folders
from longllava_trt.core.manifest import MANIFEST_FILE, Manifest, WeightRecord

if TYPE_CHECKING:
    from longllava_trt.core.engine_record import EngineWeight
    from longllava_trt.runtime.backends.kernels.device import DeviceStream
    from longllava_trt.runtime.backends.kernels.weight_plan import FusedWeight
    from longllava_trt.runtime.backends.kernels.weights import Weights
    from longllava_trt.runtime.backends.trt.cuda import CudaMemory, DeviceBlock
    from longllava_trt.runtime.backends.trt.engines import Engines

__all__ = [
    "bundles_without_weights",
    "draw_weights",
    "open_with_dummy_weights",
    "random_weights",
    "used_gib",
]

_PIECE_BYTES = 2**28


def bundles_without_weights(folder: Path | None, *, engines: bool = False) -> list[Path]:
    """Return the bundles in a folder, the smallest first: the largest may not fit on the GPU.

    Args:
        folder: Made by `prepare`; None if there is none.
        engines: Only those that have engines.
    """
    found = [] if folder is None else [f.parent for f in folder.glob(f"*/{MANIFEST_FILE}")]
    return sorted((f for f in found if not engines or any(engine_folders(f))), key=_weight_bytes)


def _weight_bytes(bundle: Path) -> int:
    return sum(weight.nbytes for weight in Manifest.load(bundle).weights.values())


def open_with_dummy_weights(bundle: Path) -> Engines:
    """Open a bundle's engines, whatever GPU they are for."""
    from longllava_trt.runtime.backends.trt.engines import open_engines

    return open_engines(
        bundle,
        folder=next(engine_folders(bundle)),
        on_any_gpu=True,
        read_weights=random_weights,
    )


def draw_weights(
    bundle: Path,
    records: Mapping[str, WeightRecord],
    plan: tuple[FusedWeight, ...],
    stream: DeviceStream,
) -> Weights:
    """Stand in for `load_fused` of our own kernels' backend."""
    from longllava_trt.runtime.backends.kernels.weights import random_weights as draw

    del bundle, records
    return draw(plan, stream)


def random_weights(
    _: Path, weights: Sequence[EngineWeight], memory: CudaMemory, __: object
) -> dict[str, DeviceBlock]:
    """Fill the device with small random numbers, the same ones again and again."""
    import torch

    from longllava_trt.runtime.backends.trt.cuda import Cuda

    small = torch.randn(_PIECE_BYTES // 2, device="cuda") * 0.02
    pieces = {
        "bfloat16": small.bfloat16(),
        "float32": small[: _PIECE_BYTES // 4].clone(),
        "int8": torch.randint(-127, 128, (_PIECE_BYTES,), device="cuda", dtype=torch.int8),
        "uint8": torch.randint(0, 256, (_PIECE_BYTES,), device="cuda", dtype=torch.uint8),
    }
    del small
    torch.cuda.synchronize()
    cuda = Cuda()
    stream, found = cuda.stream(), {}
    for weight in weights:
        nbytes = int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize
        block = found[weight.name] = memory.allocate(nbytes)
        source = pieces[weight.dtype].data_ptr()
        for place in range(0, nbytes, _PIECE_BYTES):
            length = min(_PIECE_BYTES, nbytes - place)
            cuda.copy(block.address + place, source, length, stream=stream)
    cuda.synchronize(stream)
    pieces.clear()
    torch.cuda.empty_cache()
    return found


def used_gib() -> float:
    """Return the GPU's memory that is in use, by whomever."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return float(total - free) / 2**30
