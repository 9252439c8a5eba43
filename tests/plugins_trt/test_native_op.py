"""A Python function as an operator of ONNX Runtime, over ONNX Runtime's own memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime_extensions import get_library_path

from plugins_trt.cpu.native_op import NativeOperator

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEN: list[tuple[int, bool]] = []
KEPT: list[NativeOperator] = []


def mix(a: NDArray[np.float32], b: NDArray[np.float32], *out: NDArray[np.float32]) -> None:
    """Sum and difference, in the shapes of the second and the first input."""
    if a.size and a.flat[0] == 13:
        raise ValueError("thirteen is refused")
    SEEN.append((a.ctypes.data, a.flags.c_contiguous))
    out[0][...] = a.sum() + b
    out[1][...] = a - b.sum()


@pytest.fixture(scope="module")
def operator() -> NativeOperator:
    """Registered for good: ONNX Runtime keeps its address, so the module keeps the object."""
    made = NativeOperator("TestMix", mix, num_inputs=2, outputs_like=(1, 0))
    made.register(get_library_path())
    KEPT.append(made)
    return made


def session() -> onnxruntime.InferenceSession:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "abxy"]
    node = helper.make_node("TestMix", ["a", "b"], ["x", "y"], domain="ai.onnx.contrib")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.contrib", 1)]
    graph = helper.make_graph([node], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(get_library_path())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((3, 5), (2,)), ((1,), (4, 1, 6)), ((), (7,)), ((0, 3), (2, 2))],
    ids=str,
)
def test_shapes_and_values_pass_both_ways(
    operator: NativeOperator, shape_a: tuple[int, ...], shape_b: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in (shape_a, shape_b))
    x, y = session().run(None, {"a": a, "b": b})
    np.testing.assert_array_equal(x, a.sum() + b)
    np.testing.assert_array_equal(y, a - b.sum())


def test_an_input_is_the_callers_memory(operator: NativeOperator) -> None:
    a = np.ones((64, 64), np.float32)
    session().run(None, {"a": a, "b": a})
    assert SEEN[-1] == (a.ctypes.data, True)


def test_an_exception_fails_the_run_with_its_message_and_no_more(operator: NativeOperator) -> None:
    runs = session()
    bad, good = np.full(3, 13, np.float32), np.ones(3, np.float32)
    with pytest.raises(Exception, match="ValueError: thirteen is refused"):
        runs.run(None, {"a": bad, "b": good})
    np.testing.assert_array_equal(runs.run(None, {"a": good, "b": good})[0], good + 3)


def test_sessions_in_several_threads(operator: NativeOperator) -> None:
    failures = []

    def work(number: int) -> None:
        runs = session()
        for size in range(1, 30):
            a = np.full(size, number, np.float32)
            if not np.array_equal(runs.run(None, {"a": a, "b": a})[0], a.sum() + a):
                failures.append((number, size))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
