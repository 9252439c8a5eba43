"""The lowered graph computes what the function bodies compute."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.errors import ContractError
from plugins_trt.bodies import function_bodies
from plugins_trt.cpu.lower import lower_for_cpu
from plugins_trt.cpu.register import register_kernels
from plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE, OperatorSpec

LIMIT = 2e-6


def session(model: onnx.ModelProto | Path, **settings: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    register_kernels(options)
    for name, value in settings.items():
        setattr(options, name, value)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("seq_len", [1, 65], ids=lambda n: f"len{n}")
def test_lowered_scan_equals_a_float64_loop(
    seq_len: int, one_operator_model: Any, scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    model = lower_for_cpu(one_operator_model(SELECTIVE_SCAN))
    assert not model.functions
    arrays = scan_arrays(2, seq_len)
    y, state = session(model).run(None, arrays)
    expected_y, expected_state = scan_oracle(arrays)
    assert relative_rms(y, expected_y) <= LIMIT
    assert relative_rms(state, expected_state) <= LIMIT


@pytest.mark.parametrize("num_tokens", [1, 65], ids=lambda n: f"tokens{n}")
@pytest.mark.parametrize("top_k", [1, 2], ids=lambda n: f"top{n}")
def test_lowered_moe_equals_a_float64_loop(
    num_tokens: int, top_k: int, one_operator_model: Any, moe_arrays: Any, moe_oracle: Any,
    relative_rms: Any,
) -> None:  # fmt: skip
    model = lower_for_cpu(one_operator_model(SPARSE_MOE, top_k=top_k))
    assert not model.functions
    arrays = moe_arrays(num_tokens)
    (y,) = session(model).run(None, arrays)
    assert relative_rms(y, moe_oracle(arrays, top_k)) <= LIMIT
    assert relative_rms(y, moe_oracle(arrays, top_k, renormalise=True)) > 1000 * LIMIT


def test_interleaving_folds_when_weights_are_stacked_in_the_graph(
    tmp_path: Path, moe_arrays: Any, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = moe_arrays(5)
    experts, rows, hidden = arrays["gate_up"].shape
    halves = {f"w{i}": w for i, w in enumerate(arrays["gate_up"].reshape(-1, rows // 2, hidden))}
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[experts, rows, hidden]),
        helper.make_node("Concat", list(halves), ["flat"], axis=0),
        helper.make_node("Reshape", ["flat", "shape"], ["gate_up"]),
        *(
            helper.make_node(
                SPARSE_MOE.op_type,
                SPARSE_MOE.input_names,
                [name],
                domain=SPARSE_MOE.domain,
                top_k=2,
            )
            for name in ("y", "again")
        ),
    ]
    weights = {**halves, "down": arrays["down"]}
    graph = helper.make_graph(
        nodes,
        "stacked",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["num_tokens", hidden]),
            helper.make_tensor_value_info(
                "router_logits", TensorProto.FLOAT, ["num_tokens", experts]
            ),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["num_tokens", hidden])
            for name in ("y", "again")
        ],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 27), helper.make_opsetid(SPARSE_MOE.domain, 1)]
    model = helper.make_model(
        graph, opset_imports=opsets, functions=function_bodies(), ir_version=11
    )
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    lowered = lower_for_cpu(onnx.load(tmp_path / "m.onnx", load_external_data=False))
    onnx.save(lowered, tmp_path / "lowered.onnx")
    optimized = tmp_path / "optimized.onnx"
    folded = session(tmp_path / "lowered.onnx", optimized_model_filepath=str(optimized))
    feed = {name: arrays[name] for name in ("x", "router_logits")}
    y, again = folded.run(None, feed)
    assert relative_rms(y, moe_oracle(arrays, 2)) <= LIMIT
    np.testing.assert_array_equal(y, again)
    left = {n.op_type for n in onnx.load(optimized, load_external_data=False).graph.node}
    assert left == {"MoE"}


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"], ids=str.lower)
@pytest.mark.parametrize("spec", [SELECTIVE_SCAN, SPARSE_MOE], ids=lambda s: s.op_type)
def test_other_dtypes_are_refused_and_the_model_left_alone(
    spec: OperatorSpec, dtype: str, one_operator_model: Any
) -> None:
    attributes = {"top_k": 2} if spec is SPARSE_MOE else {}
    model = one_operator_model(spec, TensorProto.DataType.Value(dtype), **attributes)
    before = model.SerializeToString()
    with pytest.raises(ContractError, match=rf"{spec.op_type} .* is {dtype.lower()}"):
        lower_for_cpu(model)
    assert model.SerializeToString() == before


def test_registration_is_idempotent_and_safe_across_threads(
    one_operator_model: Any, scan_arrays: Any
) -> None:
    options = onnxruntime.SessionOptions()
    threads = [Thread(target=register_kernels, args=(options,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = lower_for_cpu(one_operator_model(SELECTIVE_SCAN))
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert np.isfinite(made.run(None, scan_arrays(1, 3))[0]).all()
