"""Write a safetensors file as a stream: first the header, then the content block by block.

The position of every tensor is known before anything is written, so that a graph can refer to a
file that does not exist yet. Only one block of content is in memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.byte_range import ByteRange
from longllava_trt.core.dtypes import DTYPES

if TYPE_CHECKING:
    from hashlib import _Hash

    from numpy.typing import NDArray

__all__ = ["PYTORCH", "SafetensorsLayout", "content_of", "layout_safetensors", "write_safetensors"]

PYTORCH = {"format": "pt"}
"""Metadata that transformers requires in a checkpoint."""


@dataclass(frozen=True, slots=True)
class SafetensorsLayout:
    """Layout of a file, without its content."""

    header: bytes
    """Bytes at the start of the file."""
    ranges: Mapping[str, ByteRange]
    """Position of each tensor, by name, in the file's order."""

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return max([len(self.header), *(place.end for place in self.ranges.values())])


def layout_safetensors(
    file: str | Path,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    *,
    metadata: Mapping[str, str] | None = None,
    alignment: int = 8,
) -> SafetensorsLayout:
    """Return a file's header and each tensor's position; the same tensors give the same bytes.

    Args:
        file: Name in the ranges.
        tensors: Shape and our name of the dtype, by name, in the order of their content.
        metadata: Metadata in the header.
        alignment: The first tensor begins at a multiple of this many bytes. A multiple of 8.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    spans, end = {}, 0
    for name, (shape, word) in tensors.items():
        dtype = DTYPES[word]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype.safetensors, "shape": shape, "data_offsets": [begin, end]}
        spans[name] = begin, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    whole = len(text).to_bytes(8, "little") + text
    ranges = {
        name: ByteRange(file, len(whole) + begin, stop - begin)
        for name, (begin, stop) in spans.items()
    }
    return SafetensorsLayout(whole, ranges)


def write_safetensors(
    path: Path,
    layout: SafetensorsLayout,
    content: Iterable[bytes | memoryview] | None,
    *,
    digest: _Hash | None = None,
    sync: bool = False,
) -> None:
    """Write a file.

    Args:
        path: File to make.
        layout: From `layout_safetensors`.
        content: Bytes of the tensors, one after another, in blocks of any size; None for a sparse
            file, which has its full length, takes no disk space and reads as zeros.
        digest: Updated with every byte of the file, unless it is sparse.
        sync: Wait until the file is on disk.
    """
    with path.open("wb") as file:
        for block in chain([layout.header], content or ()):
            file.write(block)
            if digest is not None:
                digest.update(block)
        if content is None:
            file.truncate(layout.nbytes)
        else:
            assert file.tell() == layout.nbytes, "Bug: content is as long as was laid out"
        if sync:
            file.flush()
            os.fsync(file.fileno())


def content_of(array: NDArray[Any]) -> memoryview:
    """Return the bytes of an array of any shape and dtype, row-major; copies if not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
