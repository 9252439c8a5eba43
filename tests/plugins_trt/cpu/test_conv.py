"""The CPU's convolution against float64, in the graph that the exporter writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from longllava_trt.plugins_trt.cpu.lower_mixers import fuse_mixers
from longllava_trt.plugins_trt.cpu.op_names import CAUSAL_CONV, DOMAIN

LIMIT = 1e-6
Arrays = dict[str, np.ndarray]


def exported(activation: str = "silu", perm: tuple[int, ...] = (0, 2, 1)) -> onnx.ModelProto:
    shapes = {
        "x": ["batch", "seq_len", "channels"],
        "weight": ["channels", "one", "width"],
        "bias": ["channels"],
        "state": ["batch", "channels", "state_width"],
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=perm),
        helper.make_node(
            "CausalConvWithState",
            ["xt", "weight", "bias", "state"],
            ["yt", "state_out"],
            activation=activation,
        ),
        helper.make_node("Transpose", ["yt"], ["y"], perm=perm),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[like])
        for name, like in (("y", "x"), ("state_out", "state"))
    ]
    return helper.make_model(
        helper.make_graph(nodes, "conv", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 27), helper.make_opsetid(DOMAIN, 1)],
        ir_version=11,
    )


def fused() -> onnx.ModelProto:
    model = exported()
    fuse_mixers(model.graph)
    assert [n.op_type for n in model.graph.node] == [CAUSAL_CONV]
    return model


@pytest.fixture(scope="module")
def run(run_poisoned: Any) -> Callable[..., tuple[np.ndarray, ...]]:
    """Run the operator into memory that holds NaN."""
    model = fused()

    def call(arrays: Arrays, **settings: int) -> tuple[np.ndarray, ...]:
        shapes = {"y": arrays["x"].shape, "state_out": arrays["state"].shape}
        outputs: tuple[np.ndarray, ...] = run_poisoned(model, arrays, shapes, **settings)
        return outputs

    return call


def make(batch: int, seq_len: int, channels: int, width: int = 4) -> Arrays:
    rng = np.random.default_rng(seq_len)
    shapes = {
        "x": (batch, seq_len, channels),
        "weight": (channels, 1, width),
        "bias": (channels,),
        "state": (batch, channels, width - 1),
    }
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}


def oracle(arrays: Arrays, *, forget: bool = False) -> np.ndarray:
    """Weigh shifted copies in float64; the keyword breaks it on purpose."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    state = a["state"] * (not forget)
    columns = np.concatenate([state.swapaxes(1, 2), a["x"]], axis=1)
    seq_len, width = a["x"].shape[1], a["weight"].shape[2]
    shifted = (columns[:, k : k + seq_len] * a["weight"][:, 0, k] for k in range(width))
    y = sum(shifted) + a["bias"]
    return np.asarray(y * (1 + np.tanh(y / 2)) / 2)


@pytest.mark.parametrize("batch", [1, 3], ids=lambda n: f"batch{n}")
@pytest.mark.parametrize("seq_len", [1, 2, 3, 31, 32, 33, 65], ids=lambda n: f"len{n}")
def test_conv_equals_float64(batch: int, seq_len: int, run: Any, relative_rms: Any) -> None:
    arrays = make(batch, seq_len, 40)
    y, state = run(arrays)
    assert relative_rms(y, oracle(arrays)) <= LIMIT
    seen = np.concatenate([arrays["state"], arrays["x"].swapaxes(1, 2)], axis=2)
    np.testing.assert_array_equal(state, seen[:, :, -3:])
    assert relative_rms(y, oracle(arrays, forget=True)) > 1000 * LIMIT


@pytest.mark.parametrize("channels", [1, 15, 17, 1023, 1025, 2100], ids=lambda n: f"d{n}")
@pytest.mark.parametrize("width", [2, 4, 7], ids=lambda n: f"width{n}")
def test_conv_takes_any_width(channels: int, width: int, run: Any, relative_rms: Any) -> None:
    arrays = make(2, 35, channels, width)
    y, state = run(arrays)
    assert relative_rms(y, oracle(arrays)) <= LIMIT
    np.testing.assert_array_equal(state, arrays["x"].swapaxes(1, 2)[:, :, 36 - width :])


@pytest.mark.parametrize("cut", [1, 2, 3, 31, 32, 64, 69], ids=lambda n: f"cut{n}")
def test_two_calls_with_carried_state_equal_one(cut: int, run: Any) -> None:
    arrays = make(2, 70, 33)
    whole, last = run(arrays)
    first, carried = run({**arrays, "x": arrays["x"][:, :cut]})
    second, state = run({**arrays, "x": arrays["x"][:, cut:], "state": carried})
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    np.testing.assert_array_equal(state, last)


def test_result_does_not_depend_on_threads(run: Any) -> None:
    arrays = make(2, 100, 1100)
    for one, two in zip(run(arrays, threads=1), run(arrays, threads=2), strict=True):
        np.testing.assert_array_equal(one, two)


def test_conv_is_finite_at_extremes(run: Any, relative_rms: Any) -> None:
    arrays = make(1, 33, 20)
    arrays["bias"] *= 500
    assert relative_rms(run(arrays)[0], oracle(arrays)) <= LIMIT


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (1, 0, 6), "at least one position"),
        ("state", (1, 6, 2), "width - 1"),
        ("weight", (6, 2, 4), "at least one position"),
        ("weight", (5, 1, 4), "'weight' must be .channels, one, width. float32"),
        ("state", (2, 6, 3), "'state' must be"),
    ],
    ids=["no-steps", "short-state", "dense-weight", "fewer-channels", "other-batch"],
)
def test_bad_shapes_are_refused(name: str, shape: tuple[int, ...], message: str, run: Any) -> None:
    arrays = make(1, 5, 6)
    arrays[name] = np.zeros(shape, np.float32)
    with pytest.raises(RuntimeError, match=message):
        run(arrays)


def _read_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["yt"], ["other"]))


def _output_inside(model: onnx.ModelProto) -> None:
    model.graph.output.add().name = "yt"


def _without_bias(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[2] = ""


def _half(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize("change", [_read_twice, _output_inside, _without_bias, _half])
def test_what_differs_is_left_alone(change: Callable[[onnx.ModelProto], None]) -> None:
    model = exported()
    change(model)
    before = model.SerializeToString(deterministic=True)
    fuse_mixers(model.graph)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "settings", [{"activation": "none"}, {"perm": (1, 2, 0)}], ids=["activation", "axes"]
)
def test_other_attributes_are_left_alone(settings: Any) -> None:
    model = exported(**settings)
    before = model.SerializeToString(deterministic=True)
    fuse_mixers(model.graph)
    assert model.SerializeToString(deterministic=True) == before
