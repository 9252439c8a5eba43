"""Ceilings of this machine: bytes read from memory and float32 operations of ONNX Runtime's products, a second.

Measured with as many threads as the contestants get, one round at a time, so that it takes turns with them. The best of
all rounds counts: what else runs on the machine can only make a limit look lower than it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.models.spec import DecoderSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MachineLimits", "product_shapes"]

_READ_BYTES = 512 * 2**20
"""More than any cache holds."""
_RUNS = 3
"""Of each measurement in a round."""

Shape = tuple[int, int, int]


class MachineLimits:
    """Both rates, from the best of the rounds measured so far.

    Args:
        shapes: Products to try, (rows, inner, columns); the fastest counts.
        threads: Of each measurement.
    """

    def __init__(self, shapes: Sequence[Shape], *, threads: int) -> None:
        self._read = _reader(threads)
        self._products = {shape: _product(shape, threads) for shape in shapes}
        self.bytes_per_s = 0.0
        """Bytes read from memory."""
        self.flops_per_s = 0.0
        """Float32 operations of the fastest product; a multiplication and an addition are two."""

    def measure(self) -> None:
        """Measure one round."""
        self.bytes_per_s = max(self.bytes_per_s, _READ_BYTES / _seconds(self._read))
        for shape, product in self._products.items():
            rate = 2.0 * math.prod(shape) / _seconds(product)
            self.flops_per_s = max(self.flops_per_s, rate)


def product_shapes(decoder: DecoderSpec, tokens: int) -> list[Shape]:
    """Return the products that most of a prefill is: Mamba's projections and the MLP's matrices."""
    hidden, inner = decoder.hidden_size, decoder.mamba_layers[0].d_inner
    wide = decoder.layers[0].feed_forward.intermediate_size
    return [
        (tokens, hidden, 2 * inner),
        (tokens, inner, hidden),
        (tokens, hidden, wide),
        (tokens, wide, hidden),
    ]


def _seconds(work: Callable[[], object]) -> float:
    """Return the least time of a few runs."""
    found = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)


def _reader(threads: int) -> Callable[[], object]:
    """Return a function that reads a large array once, a part in each thread."""
    from numba import njit

    @njit(nogil=True, fastmath=True)
    def total(part: NDArray[np.float32]) -> np.float32:
        value = np.float32(0)
        for i in range(part.size):
            value += part[i]
        return value

    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), threads)
    total(parts[0][:1])
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(total, parts))


def _product(shape: Shape, threads: int) -> Callable[[], object]:
    """Return a function that multiplies by a constant matrix in ONNX Runtime, as a decoder does."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(size, np.float32) for size in ((rows, inner), (inner, columns)))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(
        [node], "product", values[:1], values[1:], [numpy_helper.from_array(w, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, {"x": x})
    return lambda: session.run(None, {"x": x})
