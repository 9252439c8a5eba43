"""liblongllava_plugins.so through its C interface, on PyTorch's tensors and stream; no TensorRT.

The interface is `plugins_trt/csrc/longllava_plugins.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.errors import LongLLaVAError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PluginLibrary"]


class _Tensor(ctypes.Structure):
    """`LongllavaTensor`."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    )


class PluginLibrary:
    """A loaded library.

    Args:
        path: Built by `python -m longllava_trt.plugins_trt.library.build`.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ("longllava_plugins_version", "longllava_last_error"):
            getattr(self._library, name).restype = ctypes.c_char_p

    @property
    def version(self) -> str:
        """Version of the plugins, and digest of what they were built from."""
        return str(self._library.longllava_plugins_version().decode())

    def workspace_bytes(self, op_type: str, attributes: str, inputs: Sequence[Tensor]) -> int:
        """Return the workspace that a call of these shapes needs.

        Raises:
            LongLLaVAError: If the library refuses the shapes.
        """
        needed, held = ctypes.c_uint64(), _described(inputs)
        self._check(
            self._library.longllava_workspace_size(
                op_type.encode(), attributes.encode(), held, len(held), ctypes.byref(needed)
            )
        )
        return needed.value

    def enqueue(
        self,
        op_type: str,
        attributes: str,
        inputs: Sequence[Tensor],
        *,
        outputs: Sequence[Tensor],
        workspace: Tensor,
    ) -> None:
        """Launch an operator on PyTorch's current stream; does not synchronise.

        Raises:
            LongLLaVAError: If the library or the driver refuses.
        """
        import torch

        read, written = _described(inputs), _described(outputs)
        self._check(
            self._library.longllava_enqueue(
                op_type.encode(),
                attributes.encode(),
                read,
                len(read),
                written,
                len(written),
                ctypes.c_void_p(workspace.data_ptr()),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            )
        )

    def _check(self, status: int) -> None:
        if status:
            raise LongLLaVAError(self._library.longllava_last_error().decode())


def _described(tensors: Sequence[Tensor]) -> ctypes.Array[_Tensor]:
    held = (_Tensor * len(tensors))()
    for slot, tensor in zip(held, tensors, strict=True):
        assert tensor.is_contiguous(), "Bug: the interface knows contiguous tensors only"
        slot.type = DTYPES[str(tensor.dtype).removeprefix("torch.")].plugin
        slot.rank, slot.data = tensor.ndim, tensor.data_ptr()
        slot.dims[: tensor.ndim] = list(tensor.shape)
    return held
