"""Weights put together from files, against NumPy doing the same with whole tensors."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.core.errors import CheckpointError
from longllava_trt.core.logs import ProgressEvent
from longllava_trt.runtime.backends.weight_loader import HostMemory, load_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class PoisonedMemory(HostMemory):
    """Fresh memory and used buffers hold rubbish; copies arrive late, as they do on a device."""

    def __init__(self) -> None:
        self.pending: list[threading.Event] = []

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        return np.full(nbytes, 0xA5, np.uint8)

    def write(
        self, buffer: NDArray[np.uint8], place: int, block: NDArray[np.uint8]
    ) -> Callable[[], None]:
        arrived = threading.Event()

        def arrive() -> None:
            super(PoisonedMemory, self).write(buffer, place, block)
            block.fill(0xA5)
            arrived.set()

        threading.Timer(random.random() / 500, arrive).start()
        return lambda: self._wait(arrived)

    @staticmethod
    def _wait(arrived: threading.Event) -> None:
        assert arrived.wait(10)


def random_values(shape: tuple[int, ...], dtype: str, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def write_files(
    folder: Path, tensors: dict[str, NDArray[Any]], *, per_file: int = 2
) -> dict[str, WeightPart]:
    """Write tensors one after another, at odd offsets."""
    parts: dict[str, WeightPart] = {}
    names = list(tensors)
    for number, begin in enumerate(range(0, len(names), per_file)):
        content = b"header!"
        file = f"weights-{number}.bin"
        for name in names[begin : begin + per_file]:
            data = tensors[name].tobytes()
            parts[name] = WeightPart(
                name=name,
                file=file,
                offset=len(content),
                nbytes=len(data),
                dtype=str(tensors[name].dtype),
            )
            content += data
        (folder / file).write_bytes(content)
    return parts


def weight(name: str, shape: tuple[int, ...], dtype: str, *parts: WeightPart) -> EngineWeight:
    return EngineWeight(name=name, shape=shape, dtype=dtype, parts=parts)


def as_array(buffer: NDArray[np.uint8], loaded: EngineWeight) -> NDArray[Any]:
    array: NDArray[Any] = buffer.view(DTYPES[loaded.dtype]).reshape(loaded.shape)
    return array


@pytest.mark.parametrize("block_bytes", [64, 100, 1000, 2**20])
@pytest.mark.parametrize("memory", [HostMemory, PoisonedMemory])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_weights_equal_those_numpy_casts_and_stacks(
    tmp_path: Path, stored: str, dtype: str, memory: type[HostMemory], block_bytes: int
) -> None:
    gates = [random_values((7, 5), stored, seed) for seed in range(3)]
    ups = [random_values((7, 5), stored, 10 + seed) for seed in range(3)]
    bias = random_values((301,), stored, 99)
    named = {f"gate.{i}": g for i, g in enumerate(gates)} | {
        f"up.{i}": u for i, u in enumerate(ups)
    }
    parts = write_files(tmp_path, named | {"bias": bias})
    stacked = weight(
        "gate_up", (3, 14, 5), dtype, *(parts[f"{n}.{i}"] for i in range(3) for n in ("gate", "up"))
    )
    plain = weight("bias", (301,), dtype, parts["bias"])

    loaded = load_weights(tmp_path, [stacked, plain], memory(), block_bytes=block_bytes)

    want = np.stack([np.concatenate(pair) for pair in zip(gates, ups, strict=True)])
    np.testing.assert_array_equal(
        as_array(loaded["gate_up"], stacked), want.astype(DTYPES[dtype]), strict=True
    )
    np.testing.assert_array_equal(as_array(loaded["bias"], plain), bias.astype(DTYPES[dtype]))


def test_one_tensor_may_serve_two_weights(tmp_path: Path) -> None:
    values = random_values((9,), "float32", 0)
    part = write_files(tmp_path, {"x": values})["x"]
    weights = [weight("a", (9,), "float32", part), weight("b", (3, 3), "float16", part)]

    loaded = load_weights(tmp_path, weights, HostMemory())

    np.testing.assert_array_equal(as_array(loaded["a"], weights[0]), values)
    np.testing.assert_array_equal(as_array(loaded["b"], weights[1]).ravel(), values.astype("f2"))


def test_progress_ends_at_all_bytes_and_never_goes_back(tmp_path: Path) -> None:
    parts = write_files(tmp_path, {str(i): random_values((1000,), "float16", i) for i in range(5)})
    events: list[ProgressEvent] = []

    weights = [weight(name, (1000,), "float16", part) for name, part in parts.items()]
    load_weights(tmp_path, weights, HostMemory(), progress=events.append, block_bytes=300)

    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total, events[-1].unit) == (10_000, 10_000, "bytes")


def test_files_that_were_cut_off_are_named_with_the_tensor(tmp_path: Path) -> None:
    part = write_files(tmp_path, {"x": random_values((100,), "float32", 0)})["x"]
    (tmp_path / part.file).write_bytes((tmp_path / part.file).read_bytes()[:-1])

    with pytest.raises(CheckpointError, match=r"weights-0\.bin: ends at byte 406, within 'x'"):
        load_weights(tmp_path, [weight("x", (100,), "float32", part)], HostMemory())


def test_missing_files_are_named(tmp_path: Path) -> None:
    part = WeightPart(name="x", file="gone.bin", offset=0, nbytes=4, dtype="float32")

    with pytest.raises(CheckpointError, match=r"gone\.bin: cannot be read \(No such file"):
        load_weights(tmp_path, [weight("x", (1,), "float32", part)], HostMemory())


def test_parts_that_do_not_make_up_the_shape_are_refused(tmp_path: Path) -> None:
    part = write_files(tmp_path, {"x": random_values((10,), "float32", 0)})["x"]

    with pytest.raises(CheckpointError, match="'x': must have 11 elements, its parts have 10"):
        load_weights(tmp_path, [weight("x", (11,), "float32", part)], HostMemory())


def test_a_failing_device_ends_the_load_and_is_waited_for(tmp_path: Path) -> None:
    parts = write_files(tmp_path, {str(i): random_values((64,), "float32", i) for i in range(8)})
    waited = []

    class Failing(HostMemory):
        written = 0

        def write(self, buffer: Any, place: int, block: Any) -> Callable[[], None]:
            self.written += 1
            if self.written == 5:
                raise MemoryError("device is full")
            return lambda: waited.append(place)

    with pytest.raises(MemoryError, match="device is full"):
        load_weights(
            tmp_path,
            [weight(name, (64,), "float32", part) for name, part in parts.items()],
            Failing(),
        )
    assert len(waited) >= 4


_PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.runtime.backends.weight_loader import HostMemory, load_weights

class Nowhere(HostMemory):
    def allocate(self, nbytes):
        return np.empty(0, np.uint8)
    def write(self, buffer, place, block):
        return lambda: None

size = int(sys.argv[2])
part = WeightPart(name="x", file="x.bin", offset=0, nbytes=size, dtype="bfloat16")
weight = EngineWeight(name="x", shape=(size // 2,), dtype=sys.argv[3], parts=(part,))
load_weights(Path(sys.argv[1]), [weight], Nowhere(), block_bytes=2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_on_the_way_does_not_grow_with_the_tensor(tmp_path: Path, dtype: str) -> None:
    with (tmp_path / "x.bin").open("wb") as file:
        file.truncate(2**30)

    def peak_mib(size: int) -> int:
        command = [sys.executable, "-c", _PEAK, str(tmp_path), str(size), dtype]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_mib(2**30) <= peak_mib(2**20) + 32
