"""The header of one safetensors file, and the position of each tensor in it.

A tensor is a file, an offset and a length: enough for an ONNX initializer, to copy it, or to map it
into memory. A part of a tensor has just another offset. Only `read_tensor` reads weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.byte_range import ByteRange
from longllava_trt.core.dtypes import DTYPES, FLOAT_NAMES, FLOATS
from longllava_trt.core.errors import CheckpointError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["TensorSource", "read_header", "read_tensor"]

_READABLE = {dtype.safetensors: dtype for dtype in FLOATS}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorSource(ByteRange):
    """Position of one tensor in a file."""

    file: Path
    """Name of the file in the checkpoint's folder; absolute if it lies elsewhere."""
    shape: tuple[int, ...]
    """Row-major."""
    dtype: str
    """`float32`, `float16` or `bfloat16`; others have the file's own name and cannot be read."""


def read_header(path: Path) -> dict[str, TensorSource]:
    """Check a safetensors file's length, and return its tensors by their stored keys."""
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path.name} is cut off or no safetensors file: its header claims {length} bytes, "
                    f"the file has {size}"
                )
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        spans = {key: _parse_entry(entry) for key, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(
            f"{path.name} has a header that cannot be read ({type(err).__name__}: {err})"
        ) from err
    _check_spans(path.name, spans.values(), size - 8 - length)
    return {
        key: TensorSource(Path(path.name), 8 + length + begin, end - begin, shape, _our_name(dtype))
        for key, (dtype, shape, begin, end) in spans.items()
    }


Span = tuple[str, tuple[int, ...], int, int]


def _parse_entry(entry: Mapping[str, Any]) -> Span:
    """Return dtype, shape, begin and end of a header entry; `ValueError` if they do not match."""
    dtype, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
    begin, end = map(int, entry["data_offsets"])
    known = _READABLE.get(dtype)
    if min(shape, default=0) < 0 or (known and end - begin != math.prod(shape) * known.itemsize):
        raise ValueError(f"{dtype} {list(shape)} does not take bytes {begin} to {end}")
    return dtype, shape, begin, end


def _check_spans(name: str, spans: Iterable[Span], data_bytes: int) -> None:
    """Check that tensors fill the data without gaps or overlaps, as the format requires."""
    cursor = 0
    for _, _, begin, end in sorted(spans, key=lambda span: span[2:]):
        if begin != cursor or end < begin:
            raise CheckpointError(
                f"{name} has tensors that overlap or leave gaps at byte {begin} of its data"
            )
        cursor = end
    if cursor != data_bytes:
        verb = "is cut off" if cursor > data_bytes else "is too long"
        raise CheckpointError(
            f"{name} {verb}: its tensors take {cursor} bytes, it has {data_bytes}"
        )


def read_tensor(source: TensorSource, folder: Path) -> npt.NDArray[Any]:
    """Map a tensor into memory, read-only; data is loaded when it is used.

    Args:
        source: From the index of `folder`.
        folder: Checkpoint.

    Returns:
        Array of the source's shape and dtype.
    """
    if source.dtype not in FLOAT_NAMES:
        raise CheckpointError(
            f"{folder / source.file}: dtype must be one of {', '.join(FLOAT_NAMES)}, got {source.dtype}; "
            "convert the checkpoint"
        )
    dtype = DTYPES[source.dtype].numpy
    return np.memmap(
        folder / source.file, dtype, mode="r", offset=source.offset, shape=source.shape
    )


def _our_name(word: str) -> str:
    """Return our name of a dtype that can be read; for others, the format's name."""
    return _READABLE[word].name if word in _READABLE else word
