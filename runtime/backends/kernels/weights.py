"""Weights on the device: from a bundle's files through the buffers of `weight_loader`, or random.

A tensor from a file is never whole in the host's memory; parts are joined on the device. Random
weights are drawn on the device, so that published sizes can be measured without a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.core.errors import ManifestError
from longllava_trt.core.manifest import WeightRecord
from longllava_trt.runtime.backends.kernels.device import DeviceStream, torch_dtype
from longllava_trt.runtime.backends.kernels.weight_plan import FusedWeight
from longllava_trt.runtime.backends.weight_loader import load_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["Weights", "load_fused", "random_weights"]

Weights = Mapping[str, torch.Tensor]
"""Tensors by the name of their `FusedWeight`; shapes and dtypes are those of `weight_plan`."""

_MEAN_SQUARE_OF_CODES = {torch.int8: 127**2 / 3, torch.uint8: 21.5}
"""Mean square of codes that are all equally likely; for int4, of the code minus 8."""
_SMALL_STEP = -4.6
"""Bias of dt: softplus of it is 0.01, a step of a trained model."""


class TorchMemory:
    """Memory for weights: a `WeightMemory` of PyTorch's, on a device or on the host.

    Args:
        stream: Stream that copies are enqueued on.
    """

    def __init__(self, stream: DeviceStream) -> None:
        self._stream = stream

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return memory for one weight."""
        with self._stream.active():
            return torch.empty(nbytes, dtype=torch.uint8, device=self._stream.device)

    def staging(self, nbytes: int) -> Bytes:
        """Return memory to read into; pinned if there is a GPU."""
        pinned = self._stream.cuda is not None
        buffer: Bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned).numpy()
        return buffer

    def write(self, buffer: torch.Tensor, place: int, block: Bytes) -> Callable[[], None]:
        """Begin to copy a block to byte `place` of a weight; see `WeightMemory.write`."""
        cuda = self._stream.cuda
        with self._stream.active():
            target = buffer[place : place + len(block)]
            target.copy_(torch.from_numpy(block), non_blocking=True)
            if cuda is None:
                return _done
            event = torch.cuda.Event()
            event.record(cuda)
        wait: Callable[[], None] = event.synchronize
        return wait


def load_fused(
    bundle: Path,
    records: Mapping[str, WeightRecord],
    plan: tuple[FusedWeight, ...],
    stream: DeviceStream,
) -> Weights:
    """Load weights from a bundle's files, cast to the plan's dtypes.

    Args:
        bundle: Folder.
        records: The manifest's weights.
        plan: Weights to load.
        stream: Stream that copies are enqueued on.

    Raises:
        ManifestError: If the bundle lacks one.
        CheckpointError: If a file is missing, too short, or a tensor's size is not the config's.
    """
    missing = sorted({part for weight in plan for part in weight.parts} - records.keys())
    if missing:
        raise ManifestError(
            f"{bundle}: lacks {len(missing)} weights that its config.json asks for, such as "
            f"'{missing[0]}'; export it again"
        )
    wanted = [
        EngineWeight(
            name=weight.name,
            shape=weight.shape,
            dtype=weight.dtype,
            parts=tuple(_part(part, records[part]) for part in weight.parts),
        )
        for weight in plan
    ]
    buffers = load_weights(bundle, wanted, TorchMemory(stream))
    if stream.cuda is not None:
        stream.cuda.synchronize()
    return {w.name: buffers[w.name].view(torch_dtype(w.dtype)).view(w.shape) for w in plan}


def random_weights(
    plan: tuple[FusedWeight, ...], stream: DeviceStream, *, seed: int = 0
) -> Weights:
    """Return random weights that keep a model's numbers in their usual range.

    Args:
        plan: Weights to draw; their parts are not used.
        stream: Stream that they are drawn on.
        seed: Seed of the draw.
    """
    with stream.active():
        generator = torch.Generator(stream.device).manual_seed(seed)
        weights = {}
        for weight in plan:
            tensor = torch.empty(
                weight.shape, dtype=torch_dtype(weight.dtype), device=stream.device
            )
            _fill(weight.name.rpartition(".")[2], tensor, generator)
            weights[weight.name] = tensor
        for weight in plan:
            if weight.name.endswith("_scales"):
                codes = weights[weight.name.removesuffix("_scales")]
                columns = codes.shape[-1] * (2 if codes.dtype == torch.uint8 else 1)
                weights[weight.name].fill_((columns * _MEAN_SQUARE_OF_CODES[codes.dtype]) ** -0.5)
    if stream.cuda is not None:
        stream.cuda.synchronize()
    return weights


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator) -> None:
    if name == "A_log":
        states = torch.arange(1, tensor.shape[1] + 1, device=tensor.device)
        tensor.copy_(states.log())
    elif name == "dt_bias":
        tensor.fill_(_SMALL_STEP)
    elif name.endswith("norm") or name == "D":
        tensor.fill_(1)
    elif tensor.dtype in _MEAN_SQUARE_OF_CODES:
        low, high = (-127, 128) if tensor.dtype == torch.int8 else (0, 256)
        tensor.random_(low, high, generator=generator)
    else:
        columns = math.prod(tensor.shape[1:]) if tensor.dim() > 1 else tensor.shape[0]
        tensor.normal_(0, columns**-0.5, generator=generator)


def _part(name: str, record: WeightRecord) -> WeightPart:
    return WeightPart(
        name=name,
        file=record.file,
        offset=record.offset,
        nbytes=record.nbytes,
        dtype=record.dtype,
    )


def _done() -> None:
    """Return at once: there is nothing to wait for."""
