"""The lowered graph computes what the function bodies compute."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.bodies import function_bodies
from longllava_trt.plugins_trt.cpu import register
from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
from longllava_trt.plugins_trt.cpu.register import register_kernels
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE, OperatorSpec

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


STORED = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


class _Layers:
    """A graph of stored matrices, each cast to float32, transposed, stacked as the exporter does."""

    def __init__(self, stored: str) -> None:
        self.dtype = STORED[stored]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.exact: dict[str, np.ndarray] = {}

    def weight(self, name: str, *shape: int) -> str:
        values = np.random.default_rng(len(self.weights)).standard_normal(shape)
        array = values.astype(helper.tensor_dtype_to_np_dtype(self.dtype))
        self.weights.append(numpy_helper.from_array(array, name))
        self.exact[name] = array.astype(np.float64)
        return self.node("Cast", name, to=TensorProto.FLOAT) if array.dtype != np.float32 else name

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def save(
        self, file: Path, inputs: dict[str, tuple[Any, ...]], outputs: list[str]
    ) -> onnx.ModelProto:
        """Write it with its weights beside it; returns it without them."""
        graph = helper.make_graph(
            self.nodes,
            "layers",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 27), helper.make_opsetid(SPARSE_MOE.domain, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, functions=function_bodies(), ir_version=11
        )
        onnx.save_model(
            model, file, save_as_external_data=True, location="w.bin", size_threshold=64
        )
        return onnx.load(file, load_external_data=False)


def lowered_session(
    model: onnx.ModelProto, folder: Path
) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """Return a session of the lowered model, and the types of the nodes that it runs."""
    onnx.save(lower_for_cpu(model), folder / "lowered.onnx")
    optimized = folder / "optimized.onnx"
    made = session(folder / "lowered.onnx", optimized_model_filepath=str(optimized))
    return made, [n.op_type for n in onnx.load(optimized, load_external_data=False).graph.node]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 24), (2, 5, 24)], ids=str)
def test_products_read_the_stored_matrix(
    stored: str, shape: tuple[int, ...], tmp_path: Path, relative_rms: Any
) -> None:
    layers = _Layers(stored)
    product = layers.node(
        "MatMul", "x", layers.node("Transpose", layers.weight("a", 70, 24), perm=[1, 0])
    )
    outputs = [product]
    if len(shape) == 2:
        outputs.append(layers.node("Gemm", "x", layers.weight("b", 7, 24), transB=1))
    model = layers.save(tmp_path / "m.onnx", {"x": shape}, outputs)
    runs, kinds = lowered_session(model, tmp_path)
    assert kinds == ["LongLLaVALinear"] * len(outputs)
    x = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    for y, name in zip(runs.run(None, {"x": x}), "ab", strict=False):
        assert relative_rms(y, x.astype(np.float64) @ layers.exact[name].T) <= LIMIT


def test_other_products_stay_what_they_are(tmp_path: Path) -> None:
    layers = _Layers("float32")
    weight = layers.weight("a", 24, 24)
    outputs = [
        layers.node("MatMul", "x", weight),
        layers.node("Gemm", "x", weight),
        layers.node("Gemm", "x", weight, transB=1, alpha=2.0),
        layers.node("Gemm", "x", weight, transB=1, transA=1),
        layers.node("Gemm", "x", weight, "x", transB=1),
        layers.node("MatMul", "x", layers.node("Transpose", "x", perm=[1, 0])),
    ]
    model = layers.save(tmp_path / "m.onnx", {"x": (24, 24)}, outputs)
    before = model.SerializeToString()
    assert lower_for_cpu(model).graph == onnx.load_model_from_string(before).graph


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_rows_are_cast_after_they_were_looked_up(stored: str, tmp_path: Path) -> None:
    layers = _Layers(stored)
    ids = np.array([[3, 0, 3], [9, 1, 0]])
    layers.weights.append(numpy_helper.from_array(ids, "ids"))
    rows = layers.node("Gather", layers.weight("table", 10, 24), "ids")
    ends = layers.node("Add", rows, "x")
    model = layers.save(tmp_path / "m.onnx", {"x": (24,)}, [ends])
    lowered = lower_for_cpu(model)
    assert [n.op_type for n in lowered.graph.node] == ["Gather", "Cast", "Add"]
    assert lowered.graph.node[0].input[0] == "table"
    runs, _ = lowered_session(lowered, tmp_path)
    (y,) = runs.run(None, {"x": np.zeros(24, np.float32)})
    np.testing.assert_array_equal(y, layers.exact["table"][ids])


@pytest.mark.parametrize("stored", STORED)
def test_experts_are_read_where_they_lie(
    stored: str, tmp_path: Path, moe_arrays: Any, moe_oracle: Any, relative_rms: Any
) -> None:
    layers, hidden, inner = _Layers(stored), 24, 20
    axis = numpy_helper.from_array(np.array([0]), "axis")
    pairs, downs = [], []
    for e in range(4):
        halves = [layers.weight(f"{part}{e}", inner, hidden) for part in ("gate", "up")]
        pairs.append(layers.node("Unsqueeze", layers.node("Concat", *halves, axis=0), "axis"))
        downs.append(layers.node("Unsqueeze", layers.weight(f"down{e}", hidden, inner), "axis"))
    stacks = [layers.node("Concat", *parts, axis=0) for parts in (pairs, downs)]
    outputs = [
        layers.node("SparseMoE", "x", "logits", *stacks, domain=SPARSE_MOE.domain, top_k=2)
        for _ in range(2)
    ]
    layers.weights.append(axis)
    inputs = {"x": ("tokens", hidden), "logits": ("tokens", 4)}
    runs, kinds = lowered_session(layers.save(tmp_path / "m.onnx", inputs, outputs), tmp_path)
    assert kinds == ["LongLLaVASparseMoE"] * 2
    arrays = moe_arrays(9)
    y, again = runs.run(None, {"x": arrays["x"], "logits": arrays["router_logits"]})
    arrays["gate_up"] = np.stack(
        [np.concatenate([layers.exact[f"{part}{e}"] for part in ("gate", "up")]) for e in range(4)]
    )
    arrays["down"] = np.stack([layers.exact[f"down{e}"] for e in range(4)])
    assert relative_rms(y, moe_oracle(arrays, 2)) <= LIMIT
    np.testing.assert_array_equal(y, again)


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


@pytest.mark.parametrize(("patience_s", "said"), [(0.01, 1), (30.0, 0)], ids=["slow", "quick"])
def test_who_waits_for_the_compiler_is_told(
    patience_s: float, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=register.__name__)
    with register._told_if_slow(patience_s):
        time.sleep(0.3)
    assert caplog.text.count("compiling the CPU kernels, once on this machine") == said


def interrupt_and_drop(err: Exception | None) -> None:
    """Behaviour of ctypes with an interrupt in a callback, and the compiler after it."""
    try:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)
    except KeyboardInterrupt:
        if err:
            raise err from None


@pytest.fixture
def default_sigint() -> Iterator[None]:
    # a test run in the background may ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("err", [None, RuntimeError("no compiled object yet")], ids=["on", "fail"])
def test_an_interrupt_that_the_compiler_drops_is_heeded(
    err: Exception | None, default_sigint: None
) -> None:
    with pytest.raises(KeyboardInterrupt), register._interruptible():
        interrupt_and_drop(err)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_errors_are_their_own(default_sigint: None) -> None:
    with pytest.raises(RuntimeError, match="bad kernel"), register._interruptible():
        raise RuntimeError("bad kernel")


def test_who_handles_interrupts_goes_on_doing_so(default_sigint: None) -> None:
    found: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: found.append(number))
    with register._interruptible():
        signal.raise_signal(signal.SIGINT)
    assert found == [signal.SIGINT]
