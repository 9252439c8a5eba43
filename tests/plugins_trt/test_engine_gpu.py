"""Each plugin inside an engine that is built and run on this GPU, against float64 in NumPy.

Inputs are drawn afresh in every run; a failure prints the seed. Needs TensorRT, a plugin library and the CUDA driver,
and nothing else of CUDA. `LONGLLAVA_PLUGINS` names a library made elsewhere.

    PYTHONPATH=. LONGLLAVA_PLUGINS=liblongllava_plugins.so pytest -m gpu tests/plugins_trt/test_engine_gpu.py
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.plugins_trt.registry import TensorRT, import_tensorrt, load_plugins
from longllava_trt.plugins_trt.spec import (
    CACHED_ATTENTION,
    CAUSAL_CONV,
    MAMBA_SCAN,
    SELECTIVE_SCAN,
    SPARSE_MOE,
    OperatorSpec,
    OperatorValue,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.trt,
    pytest.mark.skipif(
        current_target() is None,
        reason="no GPU or no driver: that plugins compute right inside an engine stays unproven",
    ),
]

Arrays = dict[str, np.ndarray]

DTYPES = {
    "float32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
OTHERS = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Relative RMS. Of half precision: some four roundings of the result and of what the experts hand on."""
LENGTHS = [1, 2, 3, 63, 64, 65, 200]
SIZES: dict[str, int] = {
    "batch": 1,
    "d_inner": 64,
    "d_state": 16,
    "2*d_inner": 128,
    "dt_rank": 32,
    "dt_b_c": 64,
    "d_conv": 4,
    "d_conv-1": 3,
    "num_experts": 8,
    "hidden": 64,
    "intermediate": 96,
    "2*intermediate": 192,
    "heads": 8,
    "kv_heads": 2,
    "head_dim": 128,
    "capacity": 300,
}
EPS = 1e-6
PAST_LEN = 37
"""Positions that caches hold before a call of attention."""
VARYING = ("seq_len", "num_tokens")


class Driver:
    """As much of the CUDA driver as it takes to run an engine."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._taken: list[ctypes.c_void_p] = []
        context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(self.stream), 0)

    def place(self, array: np.ndarray) -> int:
        """Copy an array to the GPU; returns its address."""
        address = ctypes.c_void_p()
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        self._taken.append(address)
        self._call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(array.ctypes.data), size)
        assert address.value is not None
        return address.value

    def fetch(self, address: int, array: np.ndarray) -> None:
        """Wait for the stream, and copy back."""
        self._call("cuStreamSynchronize", self.stream)
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_void_p(address), size)

    def free(self) -> None:
        while self._taken:
            self._call("cuMemFree_v2", self._taken.pop())

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        assert status == 0, f"{name}: CUDA error {status}"


@pytest.fixture(scope="module")
def tensorrt() -> TensorRT:
    """TensorRT with our plugins."""
    try:
        found = import_tensorrt()
        given = os.environ.get("LONGLLAVA_PLUGINS")
        load_plugins(found, Path(given) if given else _compile())
    except LongLLaVAError as err:
        pytest.skip(f"plugins in an engine on a GPU are unproven: {err}")
    return found


def _compile() -> Path:
    from longllava_trt.plugins_trt.library.build import build_library

    arch = int((current_target() or "sm80").removeprefix("sm"))
    return build_library(archs=[arch], weight_formats=["none"]).path


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.free()


def shape_of(axes: tuple[Any, ...], length: int) -> tuple[int, ...]:
    return tuple(
        axis if isinstance(axis, int) else length if axis in VARYING else SIZES[axis]
        for axis in axes
    )


def model_of(spec: OperatorSpec, dtype: str, **attributes: Any) -> ModelProto:
    """A graph of one node, whose length alone varies."""

    def declare(values: Any) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                value.name,
                DTYPES[dtype][0] if value.dtype == "T" else OTHERS[value.dtype],
                [a if a in VARYING else shape_of((a,), 0)[0] for a in value.axes],
            )
            for value in values
        ]

    node = helper.make_node(
        spec.op_type,
        list(spec.input_names),
        list(spec.output_names),
        domain=spec.domain,
        **attributes,
    )
    graph = helper.make_graph([node], "plugin", declare(spec.inputs), declare(spec.outputs))
    opsets = [helper.make_opsetid("", 27), helper.make_opsetid("longllava", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def build(tensorrt: TensorRT, model: ModelProto) -> Any:
    """Build for the GPU at hand, and load."""
    trt = tensorrt.module
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    assert parser.parse(model.SerializeToString())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tensor.shape:
            ranges = [[n if d == -1 else d for d in tensor.shape] for n in (1, 64, max(LENGTHS))]
            profile.set_shape(tensor.name, *ranges)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    assert engine is not None
    return engine


def run(driver: Driver, engine: Any, feed: Arrays, outputs: Arrays) -> None:
    """Run once; what is in `outputs` before is what the GPU finds there."""
    context = engine.create_execution_context()
    places = {}
    for name, array in feed.items():
        assert context.set_input_shape(name, array.shape)
        context.set_tensor_address(name, driver.place(array))
    for name, array in outputs.items():
        places[name] = driver.place(array)
        context.set_tensor_address(name, places[name])
    assert context.execute_async_v3(driver.stream.value or 0)
    for name, array in outputs.items():
        driver.fetch(places[name], array)


def conv_oracle(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    extended = np.concatenate([a["past_state"], a["input"]], axis=2)
    length = a["input"].shape[2]
    total = a["bias"][:, None] + sum(
        a["weight"][:, 0, tap, None] * extended[:, :, tap : tap + length] for tap in range(4)
    )
    return total / (1 + np.exp(-total)), extended[:, :, length:]


def attention_oracle(arrays: Arrays) -> tuple[np.ndarray]:
    q, (past,) = arrays["q"].astype(np.float64), arrays["past_len"]
    _, length, heads, head_dim = q.shape
    group = heads // arrays["key_cache"].shape[1]
    seen = slice(0, past + length)
    keys, values = (
        arrays[f"{name}_cache"][0, :, seen].astype(np.float64).repeat(group, 0)
        for name in ("key", "value")
    )
    scores = np.einsum("lhd,hpd->hlp", q[0], keys) / np.sqrt(head_dim)
    hidden = np.arange(past + length) > past + np.arange(length)[:, None]
    scores = np.where(hidden, -np.inf, scores)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights = powers / powers.sum(-1, keepdims=True)
    return (np.einsum("hlp,hpd->lhd", weights, values)[None],)


def draw(
    rng: np.random.Generator, value: OperatorValue, length: int, kind: np.dtype[Any]
) -> np.ndarray:
    """Return an input; of caches, what lies beyond the call is no number, and must not matter."""
    if value.name == "past_len":
        return np.array([PAST_LEN], np.int32)
    drawn = rng.standard_normal(shape_of(value.axes, length))
    if value.name == "A_log":
        drawn = np.log(rng.uniform(1, 16, drawn.shape))
    if value.name == "dt_proj_weight":
        drawn /= np.sqrt(SIZES["dt_rank"])
    if value.name.endswith("_cache"):
        drawn[:, :, PAST_LEN + length :] = np.nan
    return np.ascontiguousarray(drawn.astype(kind))


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(
    "op_type", ["SelectiveScan", "SparseMoE", "CausalConvWithState", "CachedAttention", "MambaScan"]
)
def test_plugin_in_an_engine_agrees_with_float64(
    op_type: str,
    dtype: str,
    tensorrt: TensorRT,
    driver: Driver,
    scan_oracle: Callable[..., Any],
    mamba_oracle: Callable[..., Any],
    moe_oracle: Callable[..., Any],
    relative_rms: Callable[..., float],
) -> None:
    cases: dict[str, tuple[OperatorSpec, dict[str, Any], Callable[..., Any]]] = {
        "SelectiveScan": (SELECTIVE_SCAN, {}, scan_oracle),
        "SparseMoE": (SPARSE_MOE, {"top_k": 2}, lambda arrays: (moe_oracle(arrays, 2),)),
        "CausalConvWithState": (CAUSAL_CONV, {"activation": "silu"}, conv_oracle),
        "CachedAttention": (CACHED_ATTENTION, {}, attention_oracle),
        "MambaScan": (MAMBA_SCAN, {"eps": EPS}, lambda arrays: mamba_oracle(arrays, eps=EPS)),
    }
    spec, attributes, oracle = cases[op_type]
    engine = build(tensorrt, model_of(spec, dtype, **attributes))
    seed = int.from_bytes(os.urandom(4), "little")
    rng = np.random.default_rng(seed)
    for length in LENGTHS:
        feed, outputs = {}, {}
        for value in spec.inputs:
            kind = DTYPES[dtype][1] if value.dtype == "T" else np.dtype(np.float32)
            feed[value.name] = draw(rng, value, length, kind)
        for value in spec.outputs:
            kind = DTYPES[dtype][1] if value.dtype == "T" else np.dtype(np.float32)
            outputs[value.name] = np.full(shape_of(value.axes, length), np.nan, kind)
        run(driver, engine, feed, outputs)
        for value, want in zip(spec.outputs, oracle(feed), strict=True):
            error = relative_rms(outputs[value.name].astype(np.float32), want)
            assert error <= TOLERANCES[dtype], f"{value.name}, length {length}, seed {seed}"
