"""Table of the dtypes that this project knows, with their names in file formats and libraries.

Every other module reads this table; none has a table of its own. NumPy is imported only for its
dtypes, so that the command line can show the names at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "FLOATS", "FLOAT_NAMES", "DType", "dtype_of_onnx", "onnx_name"]


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype under all its names."""

    name: str
    """Our name, which is also NumPy's and PyTorch's."""
    itemsize: int
    """Bytes of one element."""
    safetensors: str
    """Name in the header of a safetensors file."""
    onnx: int
    """Number in ONNX's `TensorProto.DataType`, and in ONNX Runtime's C interface."""
    tensorrt: str
    """Member of `tensorrt.DataType`."""
    triton: str
    """Name in the signature of a Triton kernel."""
    plugin: int | None = None
    """Number in the plugins' `ElementType` (csrc/form.h); None if no plugin supports it."""

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point dtype."""
        return "float" in self.name

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's dtype."""
        import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
        import numpy as np

        return np.dtype(self.name)


_TABLE = (
    # floats first, in the order for help texts; bytes, safetensors, ONNX, TensorRT, Triton, csrc
    DType("float32", 4, "F32", 1, "FLOAT", "fp32", 0),
    DType("float16", 2, "F16", 10, "HALF", "fp16", 1),
    DType("bfloat16", 2, "BF16", 16, "BF16", "bf16", 2),
    DType("int8", 1, "I8", 3, "INT8", "i8", 3),
    DType("uint8", 1, "U8", 2, "UINT8", "u8", 4),
    DType("int32", 4, "I32", 6, "INT32", "i32", 5),
    DType("int64", 8, "I64", 7, "INT64", "i64"),
    DType("bool", 1, "BOOL", 9, "BOOL", "i1"),
)

DTYPES: Mapping[str, DType] = MappingProxyType({dtype.name: dtype for dtype in _TABLE})
"""Dtypes by our name."""
FLOATS: tuple[DType, ...] = tuple(dtype for dtype in DTYPES.values() if dtype.is_float)
"""Dtypes that a checkpoint's weights and the arithmetic of a graph may have."""
FLOAT_NAMES: tuple[str, ...] = tuple(dtype.name for dtype in FLOATS)

_BY_ONNX = {dtype.onnx: dtype for dtype in DTYPES.values()}


def dtype_of_onnx(number: int) -> DType | None:
    """Return the dtype for ONNX's number; None if it is not in the table."""
    return _BY_ONNX.get(number)


def onnx_name(number: int) -> str:
    """Return our name of an ONNX element type, for messages; for unknown types, the number."""
    dtype = _BY_ONNX.get(number)
    return dtype.name if dtype else f"element type {number}"
