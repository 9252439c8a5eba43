"""Weights of engines, from a bundle's files into memory that an engine can be given.

Several threads read the files from front to back through a ring of small buffers. Each block goes
from the file into a buffer, is cast if needed, and is copied to its place in the weight. So experts
are joined at their final place, and no tensor is ever whole in the host's memory on its way to a
device. Knows no ONNX: engine.json lists the parts of each weight.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np

from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.core.errors import CheckpointError
from longllava_trt.core.logs import Progress, ProgressEvent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

__all__ = ["HostMemory", "WeightMemory", "load_weights"]

Buffer = TypeVar("Buffer")

_BLOCK_BYTES = 16 * 2**20
_READERS = 4
_SLOTS = 2 * _READERS
"""Twice the readers, so that one block is copied to the device while the next is read."""


class WeightMemory(Protocol[Buffer]):
    """Memory for weights. `write` is called from several threads at once."""

    def allocate(self, nbytes: int) -> Buffer:
        """Return memory for one weight."""

    def staging(self, nbytes: int) -> Bytes:
        """Return host memory [nbytes], uint8, that `write` reads fast: pinned, if possible."""

    def write(self, buffer: Buffer, place: int, block: Bytes) -> Callable[[], None]:
        """Begin to copy a block to a weight.

        Args:
            buffer: Memory of the weight.
            place: First byte to write.
            block: Bytes. [nbytes], uint8.

        Returns:
            Function that waits until the block may be reused.
        """


class HostMemory:
    """Weights as NumPy arrays of bytes: for a CPU, and for comparisons."""

    def allocate(self, nbytes: int) -> Bytes:
        """Return memory for one weight."""
        return np.empty(nbytes, np.uint8)

    def staging(self, nbytes: int) -> Bytes:
        """Return a buffer to read into."""
        return np.empty(nbytes, np.uint8)

    def write(self, buffer: Bytes, place: int, block: Bytes) -> Callable[[], None]:
        """Copy a block to byte `place` of a weight."""
        buffer[place : place + len(block)] = block
        return _done


@dataclass(frozen=True, slots=True)
class _Block:
    """Some elements of one weight that lie together in a file."""

    part: WeightPart
    """Bytes in the file."""
    dtype: str
    """Dtype to cast to."""
    weight: int
    """Index of the weight in the list."""
    place: int
    """First byte to write in the weight."""


class _Slot:
    """One buffer of the ring, and a function that waits until its last copy has arrived."""

    def __init__(self, buffer: Bytes) -> None:
        self.buffer = buffer
        self.wait: Callable[[], None] = _done


def load_weights(
    bundle: Path,
    weights: Sequence[EngineWeight],
    memory: WeightMemory[Buffer],
    *,
    progress: Progress | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> dict[str, Buffer]:
    """Load weights.

    Args:
        bundle: Folder that the weights' files are in.
        weights: Weights to load, from engine.json; each name once.
        memory: Memory that they are copied to.
        progress: Called as bytes are read.
        block_bytes: Size of one buffer of the ring, which has eight.

    Returns:
        The memory of each weight, row-major, by name.

    Raises:
        CheckpointError: If a file is missing or too short, or a weight's parts do not have the
            number of elements of its shape.
    """
    for weight in weights:
        _check_parts(weight)
    buffers = [memory.allocate(_nbytes(weight)) for weight in weights]
    blocks = sorted(_blocks(weights, block_bytes), key=lambda b: (b.part.file, b.part.offset))
    with ExitStack() as stack:
        names = dict.fromkeys(block.part.file for block in blocks)
        files = {name: stack.enter_context(_opened(bundle / name)) for name in names}
        ring = _Ring(memory, buffers, files, block_bytes)
        report = _Counter(progress, sum(block.part.nbytes for block in blocks))
        # in reverse: after a failure nothing new is begun, and work that was begun is waited for
        stack.callback(ring.wait)
        pool = ThreadPoolExecutor(_READERS)
        stack.callback(pool.shutdown, cancel_futures=True)
        for nbytes in pool.map(ring.carry, blocks):
            report.add(nbytes)
    return {weight.name: buffer for weight, buffer in zip(weights, buffers, strict=True)}


class _Ring(Generic[Buffer]):
    """Data that the readers share: open files, a ring of buffers, each weight's target."""

    def __init__(
        self,
        memory: WeightMemory[Buffer],
        buffers: list[Buffer],
        files: dict[str, int],
        block_bytes: int,
    ) -> None:
        self._memory = memory
        self._buffers = buffers
        self._files = files
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(_SLOTS):
            self._slots.put(_Slot(memory.staging(block_bytes)))

    def carry(self, block: _Block) -> int:
        """Copy a block from its file to its place; returns the number of bytes read."""
        slot = self._slots.get()
        try:
            slot.wait()
            slot.wait = _done
            content = self._read(block, slot.buffer)
            slot.wait = self._memory.write(self._buffers[block.weight], block.place, content)
        finally:
            self._slots.put(slot)
        return block.part.nbytes

    def wait(self) -> None:
        """Wait until all copies have arrived."""
        for _ in range(_SLOTS):
            self._slots.get().wait()

    def _read(self, block: _Block, buffer: Bytes) -> Bytes:
        """Fill a buffer with a block, cast."""
        if block.part.dtype == block.dtype:
            content = buffer[: block.part.nbytes]
            self._fill(block, content)
            return content
        stored = np.empty(block.part.nbytes, np.uint8)
        self._fill(block, stored)
        values = stored.view(block.part.dtype)
        content = buffer[: values.size * np.dtype(block.dtype).itemsize]
        content.view(block.dtype)[:] = values
        return content

    def _fill(self, block: _Block, content: Bytes) -> None:
        done = 0
        while done < len(content):
            at = block.part.offset + done
            count = os.preadv(self._files[block.part.file], [content[done:].data], at)
            if not count:
                raise CheckpointError(
                    f"{block.part.file}: ends at byte {at}, within '{block.part.name}'; it was "
                    "changed or cut off after the bundle was made: export it again"
                )
            done += count


class _Counter:
    """Reports bytes read."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(ProgressEvent("load", self._done, self._total, "bytes"))


def _blocks(weights: Sequence[EngineWeight], block_bytes: int) -> Iterator[_Block]:
    for number, weight in enumerate(weights):
        place, itemsize = 0, np.dtype(weight.dtype).itemsize
        for part in weight.parts:
            stored = np.dtype(part.dtype).itemsize
            step = block_bytes // max(stored, itemsize) * stored
            for skip in range(0, part.nbytes, step):
                nbytes = min(step, part.nbytes - skip)
                yield _Block(part.within(skip, nbytes), weight.dtype, number, place)
                place += nbytes // stored * itemsize


def _nbytes(weight: EngineWeight) -> int:
    return math.prod(weight.shape) * np.dtype(weight.dtype).itemsize


def _check_parts(weight: EngineWeight) -> None:
    elements = sum(part.nbytes / np.dtype(part.dtype).itemsize for part in weight.parts)
    if elements != math.prod(weight.shape):
        raise CheckpointError(
            f"'{weight.name}': must have {math.prod(weight.shape)} elements, its parts have {elements:g}; "
            "build the engines again"
        )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Lend a file descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as err:
        raise CheckpointError(
            f"{path}: cannot be read ({err.strerror}); the bundle links to files of its checkpoint, "
            "which must stay in place"
        ) from err
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _done() -> None:
    """Return at once: there is nothing to wait for."""
