"""The function bodies, run by plain ONNX Runtime with nothing registered."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE, OperatorSpec

LIMIT = 2e-6


def run(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, arrays))


@pytest.mark.parametrize("batch", [1, 3], ids=lambda n: f"batch{n}")
@pytest.mark.parametrize("seq_len", [1, 2, 3, 63, 64, 65, 1000], ids=lambda n: f"len{n}")
def test_scan_equals_a_float64_loop(
    batch: int, seq_len: int, one_operator_model: Any, scan_arrays: Any, scan_oracle: Any,
    relative_rms: Any,
) -> None:  # fmt: skip
    arrays = scan_arrays(batch, seq_len)
    y, state = run(one_operator_model(SELECTIVE_SCAN), arrays)
    expected_y, expected_state = scan_oracle(arrays)
    assert relative_rms(y, expected_y) <= LIMIT
    assert relative_rms(state, expected_state) <= LIMIT


def test_scan_is_finite_at_extremes(
    one_operator_model: Any, extreme_scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    y, state = run(one_operator_model(SELECTIVE_SCAN), extreme_scan_arrays)
    expected_y, expected_state = scan_oracle(extreme_scan_arrays)
    assert relative_rms(y, expected_y) <= LIMIT
    assert relative_rms(state, expected_state) <= LIMIT


def test_scan_keeps_relative_accuracy_of_small_steps(
    one_operator_model: Any, scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    arrays = scan_arrays(1, 20)
    arrays["dt_bias"] -= 12
    arrays["D"][:] = 0
    arrays["state"][:] = 0
    y, _ = run(one_operator_model(SELECTIVE_SCAN), arrays)
    assert relative_rms(y, scan_oracle(arrays)[0]) <= LIMIT


def test_scan_comparison_fails_when_the_skip_is_dropped(
    one_operator_model: Any, scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    arrays = scan_arrays(1, 65)
    y, _ = run(one_operator_model(SELECTIVE_SCAN), arrays)
    assert relative_rms(y, scan_oracle(arrays, skip=False)[0]) > 1000 * LIMIT


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 65], ids=lambda n: f"tokens{n}")
@pytest.mark.parametrize("top_k", [1, 2, 4], ids=lambda n: f"top{n}")
def test_moe_equals_a_float64_loop(
    num_tokens: int, top_k: int, one_operator_model: Any, moe_arrays: Any, moe_oracle: Any,
    relative_rms: Any,
) -> None:  # fmt: skip
    arrays = moe_arrays(num_tokens)
    (y,) = run(one_operator_model(SPARSE_MOE, top_k=top_k), arrays)
    assert relative_rms(y, moe_oracle(arrays, top_k)) <= LIMIT


def test_moe_ignores_experts_nobody_chose(
    one_operator_model: Any, moe_arrays: Any, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = moe_arrays(9)
    arrays["router_logits"][:, 0] = -30
    expected = moe_oracle(arrays, 2)
    arrays["gate_up"][0] = np.nan
    (y,) = run(one_operator_model(SPARSE_MOE, top_k=2), arrays)
    assert relative_rms(y, expected) <= LIMIT


def test_moe_comparison_fails_when_the_router_is_renormalised(
    one_operator_model: Any, moe_arrays: Any, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = moe_arrays(9)
    (y,) = run(one_operator_model(SPARSE_MOE, top_k=2), arrays)
    assert relative_rms(y, moe_oracle(arrays, 2, renormalise=True)) > 1000 * LIMIT


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16"], ids=str.lower)
@pytest.mark.parametrize("spec", [SELECTIVE_SCAN, SPARSE_MOE], ids=lambda s: s.op_type)
def test_checker_accepts_every_dtype(
    spec: OperatorSpec, dtype: str, one_operator_model: Any
) -> None:
    attributes = {"top_k": 2} if spec is SPARSE_MOE else {}
    model = one_operator_model(spec, TensorProto.DataType.Value(dtype), **attributes)
    onnx.checker.check_model(model, full_check=True)
