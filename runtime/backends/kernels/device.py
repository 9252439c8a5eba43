"""A device with a stream of its own, and copies of arrays to it and back.

NumPy has no bfloat16 and PyTorch does not know that of ml_dtypes: such arrays are copied as
integers of the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DeviceStream", "torch_dtype"]

_CARRIERS = {torch.bfloat16: torch.int16}
_PINNED_BYTES = 64 * 2**20
"""Larger arrays, such as a saved session's caches, go through pageable memory.

Pinned memory would not be given back.
"""


def torch_dtype(name: str) -> torch.dtype:
    """Return PyTorch's dtype for NumPy's name of it."""
    found: torch.dtype = getattr(torch, name)
    return found


class DeviceStream:
    """One stream of a device. A CPU has no stream: there, calls return when they are done.

    Args:
        device: `cuda`, or `cpu` for Triton's interpreter.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = torch.cuda.Stream(device) if device.type == "cuda" else None
        """PyTorch's stream."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Launch the work inside on this stream, and keep nothing for gradients."""
        with torch.no_grad(), torch.cuda.stream(self.cuda):
            yield

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """Begin to copy an array to the device; the caller may change the array at once.

        Call it while active. Any shape; a dtype that PyTorch has, or bfloat16.
        """
        held = _as_tensor(array)
        if self.cuda is None:
            return held.clone()
        if array.nbytes > _PINNED_BYTES:
            return held.to(self.device)
        pinned = torch.empty(held.shape, dtype=held.dtype, pin_memory=True)
        pinned.copy_(held)
        return pinned.to(self.device, non_blocking=True)

    def to_host(self, tensor: torch.Tensor) -> NDArray[Any]:
        """Wait for all launched work and return a tensor's values, of its shape and dtype.

        Call it while active.
        """
        carrier = _CARRIERS.get(tensor.dtype)
        bits = (tensor if carrier is None else tensor.view(carrier)).contiguous()
        if self.cuda is None:
            host = bits.clone()
        elif bits.nbytes > _PINNED_BYTES:
            host = bits.cpu()
        else:
            host = torch.empty(bits.shape, dtype=bits.dtype, pin_memory=True)
            host.copy_(bits, non_blocking=True)
            self.cuda.synchronize()
        array: NDArray[Any] = host.numpy()
        return array if carrier is None else array.view(_name(tensor.dtype))


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    dtype = torch_dtype(array.dtype.name)
    whole = np.ascontiguousarray(array)
    if not whole.flags.writeable:
        # PyTorch warns about a read-only array, but nothing here writes to it
        whole = whole.copy()
    carrier = _CARRIERS.get(dtype)
    if carrier is None:
        return torch.from_numpy(whole)
    return torch.from_numpy(whole.view(np.int16)).view(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
