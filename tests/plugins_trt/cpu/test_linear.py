"""The CPU's dense layer over stored matrices, as ONNX Runtime calls it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.plugins_trt.cpu.op_names import DOMAIN, LINEAR

LIMIT = 2e-6
STORED = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16} | {
    "bfloat16": TensorProto.BFLOAT16
}


def model_of(weight: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node(LINEAR, ["x", "weight"], ["y"], domain=DOMAIN)
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 27), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("leading", [(), (1,), (7,), (257,), (2, 300), (0,)], ids=str)
@pytest.mark.parametrize(("columns", "depth"), [(1, 1), (65, 33), (200, 1100)], ids=str)
def test_linear_equals_float64(
    stored: str, leading: tuple[int, ...], columns: int, depth: int, run_poisoned: Any,
    relative_rms: Any,
) -> None:  # fmt: skip
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((*leading, depth)).astype(np.float32)
    kind = helper.tensor_dtype_to_np_dtype(STORED[stored])
    weight = rng.standard_normal((columns, depth)).astype(kind)
    (y,) = run_poisoned(model_of(weight), {"x": x}, {"y": (*leading, columns)})
    if y.size:
        expected = x.astype(np.float64) @ weight.astype(np.float64).T
        assert relative_rms(y, expected) <= LIMIT
        assert relative_rms(y, x.astype(np.float64) @ weight[::-1].T.astype(np.float64)) > (
            1000 * LIMIT if columns > 1 else -1
        )


def test_bits_do_not_depend_on_threads(run_poisoned: Any) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((600, 130), (70, 130)))
    one, three = (
        run_poisoned(model_of(weight), {"x": x}, {"y": (600, 70)}, threads=n)[0] for n in (1, 3)
    )
    np.testing.assert_array_equal(one, three)


def test_few_rows_give_the_bits_of_one_alone(run_poisoned: Any) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((7, 1300), (70, 1300)))
    (whole,) = run_poisoned(model_of(weight), {"x": x}, {"y": (7, 70)})
    for row in range(7):
        (alone,) = run_poisoned(model_of(weight), {"x": x[row : row + 1]}, {"y": (1, 70)})
        np.testing.assert_array_equal(alone[0], whole[row])


def test_another_depth_is_refused(run_poisoned: Any) -> None:
    with pytest.raises(Exception, match=r"'weight' must be \[out, in\] float32 or float16"):
        run_poisoned(
            model_of(np.ones((3, 5), np.float32)), {"x": np.ones((2, 4), np.float32)}, {"y": (2, 3)}
        )
