"""Stored bytes that a value of a graph is made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.plugins_trt.stored_values import StoredValues

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float16), name)


def graph(*nodes: onnx.NodeProto) -> StoredValues:
    """Return the values of a graph with weights a, b and c, and axes."""
    weights = [weight("a", 2, 3), weight("b", 4, 3), weight("c", 2, 5)]
    axes = {"front": [0], "behind": [-1], "both": [0, 3]}
    constants = [numpy_helper.from_array(np.array(v), name) for name, v in axes.items()]
    return StoredValues(helper.make_graph(nodes, "g", [], [], [*weights, *constants]))


def test_a_cast_is_seen_through_once() -> None:
    values = graph(
        helper.make_node("Cast", ["a"], ["wide"], to=FLOAT),
        helper.make_node("Cast", ["wide"], ["same"], to=FLOAT),
        helper.make_node("Cast", ["wide"], ["again"], to=HALF),
    )
    wide = values.get("wide")
    assert wide is not None
    assert ([w.name for w in wide.weights], wide.dtype, wide.is_as_stored) == (["a"], FLOAT, False)
    assert values.get("same") == wide
    # two casts in turn round twice, they are not one
    assert values.get("again") is None


@pytest.mark.parametrize(
    ("axes", "shape"), [("front", (1, 2, 3)), ("behind", (2, 3, 1)), ("both", (1, 2, 3, 1))]
)
def test_an_added_axis_moves_no_byte(axes: str, shape: tuple[int, ...]) -> None:
    value = graph(helper.make_node("Unsqueeze", ["a", axes], ["y"])).get("y")
    assert value is not None
    assert value.shape == shape


def test_rows_that_are_joined_lie_one_after_another() -> None:
    values = graph(
        helper.make_node("Concat", ["b", "a"], ["ba"], axis=0),
        helper.make_node("Concat", ["ba", "a"], ["all"], axis=0),
    )
    value = values.get("all")
    assert value is not None
    assert ([w.name for w in value.weights], value.shape) == (["b", "a", "a"], (8, 3))


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Concat", ["a", "a"], ["y"], axis=1),
        helper.make_node("Concat", ["a", "x"], ["y"], axis=0),
        helper.make_node("Concat", ["a", "c"], ["y"], axis=0),
        helper.make_node("Unsqueeze", ["a", "x"], ["y"]),
        helper.make_node("Transpose", ["a"], ["y"], perm=[1, 0]),
        helper.make_node("Cast", ["a"], ["y"], to=FLOAT, domain="other"),
    ],
    ids=["columns", "computed", "misshapen", "unknown-axes", "turned", "foreign"],
)
def test_anything_else_is_computed(node: onnx.NodeProto) -> None:
    assert graph(node).get("y") is None


def test_what_is_in_files_is_told_from_what_is_in_the_graph() -> None:
    outside = weight("a", 2, 3)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    entry = outside.external_data.add()
    entry.key, entry.value = "location", "f"
    joined = helper.make_node("Concat", ["a", "b"], ["ab"], axis=0)
    values = StoredValues(helper.make_graph([joined], "g", [], [], [outside, weight("b", 4, 3)]))
    external = {name: value.is_external for name, value in values.items()}
    assert external == {"a": True, "b": False, "ab": False}
