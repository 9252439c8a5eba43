"""SparseMoE over quantised experts: its bodies and the CPU's way, against a float64 loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.plugins_trt.bodies import function_bodies
from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
from longllava_trt.plugins_trt.cpu.register import register_kernels
from longllava_trt.plugins_trt.spec import SPARSE_MOE

LIMIT = 2e-6
FORMATS = ["int8", "int4"]
HIDDEN, INTERMEDIATE, EXPERTS = 160, 288, 4
"""Two groups a row and three, the last of them short."""
Arrays = dict[str, np.ndarray]


def quantised(num_tokens: int, weight_format: str) -> tuple[Arrays, Arrays]:
    """Return the node's inputs, and those of the float operator that they stand for; codes are drawn, not rounded."""
    rng = np.random.default_rng(num_tokens)
    feed: Arrays = {
        "x": rng.standard_normal((num_tokens, HIDDEN)).astype(np.float32),
        "router_logits": rng.standard_normal((num_tokens, EXPERTS)).astype(np.float32),
    }
    wide = dict(feed)
    for name, rows, columns in (
        ("gate_up", 2 * INTERMEDIATE, HIDDEN),
        ("down", HIDDEN, INTERMEDIATE),
    ):
        groups = np.arange(columns) // (columns if weight_format == "int8" else 128)
        top = 127 if weight_format == "int8" else 7
        codes = rng.integers(-top, top + 1, (EXPERTS, rows, columns))
        scales = rng.uniform(0.1, 3, (EXPERTS, rows, groups[-1] + 1)) / top / np.sqrt(columns)
        feed[f"{name}_scales"] = scales.astype(np.float32)
        wide[name] = codes * feed[f"{name}_scales"][..., groups].astype(np.float64)
        if weight_format == "int8":
            feed[name] = codes.astype(np.int8)
            feed[f"{name}_scales"] = feed[f"{name}_scales"][..., 0]
        else:
            pairs = (codes + 8).astype(np.uint8)
            feed[name] = pairs[..., ::2] + 16 * pairs[..., 1::2]
    return feed, wide


def moe_model(
    weight_format: str, *, weights: Arrays, top_k: int = 2, dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Return a graph of one node with its body; its weights are initializers."""
    names = [*SPARSE_MOE.input_names, *(v.name for v in SPARSE_MOE.optional_inputs)]
    node = helper.make_node(
        SPARSE_MOE.op_type,
        names,
        ["y"],
        domain=SPARSE_MOE.domain,
        top_k=top_k,
        weight_format=weight_format,
    )
    graph = helper.make_graph(
        [node],
        "one_operator",
        [
            helper.make_tensor_value_info("x", dtype, ["num_tokens", HIDDEN]),
            helper.make_tensor_value_info("router_logits", dtype, ["num_tokens", EXPERTS]),
        ],
        [helper.make_tensor_value_info("y", dtype, ["num_tokens", HIDDEN])],
        [numpy_helper.from_array(weights[name], name) for name in names[2:]],
    )
    opsets = [helper.make_opsetid("", 27), helper.make_opsetid(SPARSE_MOE.domain, 1)]
    bodies = [f for f in function_bodies(weight_format) if f.name == SPARSE_MOE.op_type]
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=11)


def run(model: onnx.ModelProto, feed: Arrays, *, optimized: str = "") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = optimized
    register_kernels(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {name: feed[name] for name in ("x", "router_logits")})
    return np.asarray(y)


@pytest.mark.parametrize("num_tokens", [1, 2, 65], ids=lambda n: f"tokens{n}")
@pytest.mark.parametrize("top_k", [1, 2], ids=lambda n: f"top{n}")
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("lowered", [False, True], ids=["body", "lowered"])
def test_quantised_moe_equals_a_float64_loop(
    weight_format: str, num_tokens: int, top_k: int, lowered: bool, moe_oracle: Any,
    relative_rms: Any,
) -> None:  # fmt: skip
    feed, wide = quantised(num_tokens, weight_format)
    model = moe_model(weight_format, weights=feed, top_k=top_k)
    y = run(lower_for_cpu(model) if lowered else model, feed)
    assert relative_rms(y, moe_oracle(wide, top_k)) <= LIMIT


@pytest.mark.parametrize("lowered", [False, True], ids=["body", "lowered"])
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("wrong", ["gate_up_scales", "down_scales", "gate_up"])
def test_a_wrong_row_is_noticed(
    weight_format: str, lowered: bool, wrong: str, moe_oracle: Any, relative_rms: Any
) -> None:
    feed, wide = quantised(65, weight_format)
    expected = moe_oracle(wide, 2)
    feed[wrong] = np.roll(feed[wrong], 1, axis=1)
    model = moe_model(weight_format, weights=feed)
    y = run(lower_for_cpu(model) if lowered else model, feed)
    assert relative_rms(y, expected) > 1000 * LIMIT


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_kernel_reads_the_codes_themselves(weight_format: str, tmp_path: Any) -> None:
    feed, _ = quantised(3, weight_format)
    file = tmp_path / "optimized.onnx"
    run(lower_for_cpu(moe_model(weight_format, weights=feed)), feed, optimized=str(file))
    graph = onnx.load(file).graph
    (node,) = graph.node
    stored = {init.name: init.data_type for init in graph.initializer}
    codes = TensorProto.INT8 if weight_format == "int8" else TensorProto.UINT8
    assert [stored[name] for name in node.input[2:4]] == [codes, codes]


@pytest.mark.parametrize("wrong", ["gate_up", "gate_up_scales", "down_scales"])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_other_widths_are_refused(weight_format: str, wrong: str) -> None:
    feed, _ = quantised(3, weight_format)
    feed[wrong] = feed[wrong][..., :-1]
    model = lower_for_cpu(moe_model(weight_format, weights=feed))
    with pytest.raises(Exception, match=f"'{wrong}' must be|as wide as x"):
        run(model, feed)


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16"], ids=str.lower)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_checker_accepts_every_dtype(weight_format: str, dtype: str) -> None:
    feed, _ = quantised(3, weight_format)
    model = moe_model(weight_format, weights=feed, dtype=TensorProto.DataType.Value(dtype))
    onnx.checker.check_model(model, full_check=True)
