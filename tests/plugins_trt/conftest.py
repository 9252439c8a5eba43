"""Independent oracles for the operators, and the models that hold one of them each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from longllava_trt.plugins_trt.bodies import function_bodies
from longllava_trt.plugins_trt.cpu.register import register_kernels
from longllava_trt.plugins_trt.spec import OperatorSpec

Arrays = dict[str, np.ndarray]


def _scan_oracle(
    arrays: Arrays, *, skip: bool = True, reset_at: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Step through time in float64; the keywords break it on purpose."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    raw = a["dt"] + a["dt_bias"]
    delta = np.where(raw > 20, raw, np.log1p(np.exp(np.minimum(raw, 20))))
    rate, h, y = -np.exp(a["A_log"]), a["state"].copy(), np.empty_like(a["u"])
    for t in range(y.shape[1]):
        if t == reset_at:
            h = np.zeros_like(h)
        delta_u = delta[:, t] * a["u"][:, t]
        h = np.exp(delta[:, t, :, None] * rate) * h + delta_u[:, :, None] * a["B"][:, t, None, :]
        y[:, t] = (h * a["C"][:, t, None, :]).sum(-1) + skip * a["D"] * a["u"][:, t]
    return y * a["z"] / (1 + np.exp(-a["z"])), h


def _mamba_oracle(arrays: Arrays, *, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Normalise, project and scan in float64; nothing is rounded in between."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    rank, d_state = len(a["dt_norm_weight"]), len(a["b_norm_weight"])
    parts = np.split(a["projected"], [rank, rank + d_state], axis=-1)
    dt, b, c = (
        part / np.sqrt((part**2).mean(-1, keepdims=True) + eps) * a[f"{name}_norm_weight"]
        for name, part in zip(("dt", "b", "c"), parts, strict=True)
    )
    taken = {name: a[name] for name in ("u", "A_log", "D", "dt_bias", "state")}
    taken |= {"dt": dt @ a["dt_proj_weight"].T, "B": b, "C": c}
    return _scan_oracle(taken | {"z": np.split(a["xz"], 2, axis=-1)[1]})


def _moe_oracle(arrays: Arrays, top_k: int, *, renormalise: bool = False) -> np.ndarray:
    """Visit the chosen experts token by token in float64; the keyword breaks it on purpose."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    y = np.zeros_like(a["x"])
    half = a["down"].shape[2]
    for token, (x, logits) in enumerate(zip(a["x"], a["router_logits"], strict=True)):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        chosen = sorted(np.argsort(-p, kind="stable")[:top_k])
        total = p[chosen].sum() if renormalise else 1.0
        for e in chosen:
            gate, up = a["gate_up"][e, :half] @ x, a["gate_up"][e, half:] @ x
            y[token] += p[e] / total * (a["down"][e] @ (gate / (1 + np.exp(-gate)) * up))
    return y


def _scan_arrays(batch: int, seq_len: int, d_inner: int = 40, d_state: int = 16) -> Arrays:
    rng = np.random.default_rng(seq_len)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "u": normal(batch, seq_len, d_inner),
        "dt": normal(batch, seq_len, d_inner),
        "A_log": np.log(rng.uniform(1, 16, (d_inner, d_state))).astype(np.float32),
        "B": normal(batch, seq_len, d_state),
        "C": normal(batch, seq_len, d_state),
        "D": normal(d_inner),
        "z": normal(batch, seq_len, d_inner),
        "dt_bias": normal(d_inner) - 4,
        "state": normal(batch, d_inner, d_state),
    }


def _extreme_scan_arrays() -> Arrays:
    """Steps of 0 and 50, decays of exp(-1e4) and beyond, gates of -50 and 50."""
    arrays = _scan_arrays(1, 70)
    arrays["dt"] = np.sign(arrays["dt"]) * np.float32(50)
    arrays["z"] = np.sign(arrays["z"]) * np.float32(50)
    arrays["A_log"][:8] = np.log(np.float32(200))
    return arrays


def _moe_arrays(num_tokens: int, num_experts: int = 4) -> Arrays:
    rng = np.random.default_rng(num_tokens)
    hidden, intermediate = 24, 20
    shapes = {
        "x": (num_tokens, hidden),
        "router_logits": (num_tokens, num_experts),
        "gate_up": (num_experts, 2 * intermediate, hidden),
        "down": (num_experts, hidden, intermediate),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def _relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the RMS of the error over that of the expectation, of finite arrays of one shape."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = np.square(actual.astype(np.float64) - expected).sum()
    return float(np.sqrt(error / np.square(expected.astype(np.float64)).sum()))


def _model(
    spec: OperatorSpec, dtype: int = TensorProto.FLOAT, **attributes: Any
) -> onnx.ModelProto:
    """Return a graph of one node with its function body, all dims symbolic."""
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                v.name, dtype if v.dtype == "T" else TensorProto.FLOAT, list(v.axes)
            )
            for v in values
        ]
        for values in (spec.inputs, spec.outputs)
    )
    node = helper.make_node(
        spec.op_type, spec.input_names, spec.output_names, domain=spec.domain, **attributes
    )
    return helper.make_model(
        helper.make_graph([node], "one_operator", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 27), helper.make_opsetid(spec.domain, spec.version)],
        functions=[f for f in function_bodies() if f.name == spec.op_type],
        ir_version=11,
    )


def _run_poisoned(
    model: onnx.ModelProto,
    arrays: Arrays,
    shapes: dict[str, tuple[int, ...]],
    *,
    threads: int = 2,
) -> tuple[np.ndarray, ...]:
    """Run a lowered model into outputs that hold NaN before the call; returns them in the order of `shapes`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    register_kernels(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = tuple(np.full(shape, np.nan, np.float32) for shape in shapes.values())
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for name, output in zip(shapes, outputs, strict=True):
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(output))
    session.run_with_iobinding(binding)
    return outputs


@pytest.fixture(scope="session")
def scan_oracle() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return _scan_oracle


@pytest.fixture(scope="session")
def mamba_oracle() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return _mamba_oracle


@pytest.fixture(scope="session")
def moe_oracle() -> Callable[..., np.ndarray]:
    return _moe_oracle


@pytest.fixture(scope="session")
def scan_arrays() -> Callable[..., Arrays]:
    return _scan_arrays


@pytest.fixture
def extreme_scan_arrays() -> Arrays:
    return _extreme_scan_arrays()


@pytest.fixture(scope="session")
def moe_arrays() -> Callable[..., Arrays]:
    return _moe_arrays


@pytest.fixture(scope="session")
def relative_rms() -> Callable[[np.ndarray, np.ndarray], float]:
    return _relative_rms


@pytest.fixture(scope="session")
def one_operator_model() -> Callable[..., onnx.ModelProto]:
    return _model


@pytest.fixture(scope="session")
def run_poisoned() -> Callable[..., Any]:
    return _run_poisoned
