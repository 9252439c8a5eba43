"""A compiled kernel as an operator of ONNX Runtime, over ONNX Runtime's own memory and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numba
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime_extensions import get_library_path

from longllava_trt.plugins_trt.cpu.call_frame import (
    ATTRIBUTES,
    NUM_INPUTS,
    PHASE,
    PLAN,
    SCRATCH,
    bytes_at,
    dim,
    element_type,
    floats,
    frame_words,
    matrix,
    rank,
)
from longllava_trt.plugins_trt.cpu.op_names import DOMAIN, LINEAR
from longllava_trt.plugins_trt.cpu.ort_custom_op import NativeOperator, NativeValue
from longllava_trt.plugins_trt.cpu.stored_matrix import BFLOAT16, FLOAT

Arrays = dict[str, np.ndarray]


@numba.cfunc(PLAN)
def plan(address: Any) -> Any:
    """Refuse thirteen rows; otherwise a task a row."""
    frame = frame_words(address)
    rows = matrix(frame, 0).shape[0]
    frame[0], frame[SCRATCH] = rows, rows
    return 1 if rows == 13 else 0


@numba.cfunc(PHASE)
def sums(address: Any, task: Any) -> None:
    """Put each row's sum into the scratch; the first task sets the tasks of the next phase."""
    frame = frame_words(address)
    row = np.int64(task)
    floats(frame, frame[NUM_INPUTS] + 2)[row] = matrix(frame, 0)[row].sum()
    if row == 0:
        frame[1] = frame[0]


@numba.cfunc(PHASE)
def spread(address: Any, task: Any) -> None:
    """Multiply by the factor; add what the call was told of its inputs."""
    frame = frame_words(address)
    row, count = np.int64(task), frame[NUM_INPUTS]
    y = matrix(frame, count)
    y[row] = floats(frame, count + 2)[row] * frame[ATTRIBUTES]
    told = floats(frame, count + 1)
    told[:] = 0
    told[0], told[1], told[2] = rank(frame, 0), element_type(frame, 1), count
    told[3] = dim(frame, count - 1, -1)
    told[4] = bytes_at(frame, 0) % 4096


@pytest.fixture(scope="module", autouse=True)
def operator() -> NativeOperator:
    made = NativeOperator(
        "TestRows",
        plan=plan,
        phases=(sums, spread),
        inputs=(
            NativeValue("x", ("...", "n")),
            NativeValue("w", ("m", "n"), (FLOAT, BFLOAT16)),
        ),
        repeated=(NativeValue("a", ("k",)), NativeValue("b", ("2*k",))),
        outputs=(
            NativeValue("y", ("...", "m")),
            NativeValue("told", ("2*k",)),
            NativeValue("scratch", ("scratch",)),
        ),
        attributes=("factor",),
        problem="thirteen rows are refused",
    )
    made.register(get_library_path())
    return made


def session(arrays: Arrays, *, threads: int = 2, factor: int | None = 3) -> Any:
    kinds = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}
    declared = [
        helper.make_tensor_value_info(name, kinds[array.dtype.type], None)
        for name, array in arrays.items()
    ]
    attributes: Any = {} if factor is None else {"factor": factor}
    outputs = ["y", "told", "scratch"]
    node = helper.make_node(
        "TestRows", list(arrays), outputs, domain="ai.onnx.contrib", **attributes
    )
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs[:2]]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.contrib", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", declared, results), opset_imports=opsets, ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(get_library_path())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def inputs(*leading: int, pairs: int = 1, n: int = 6, m: int = 5, k: int = 4) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"x": (*leading, n), "w": (m, n)}
    for i in range(pairs):
        shapes |= {f"a{i}": (k,), f"b{i}": (2 * k,)}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


@pytest.mark.parametrize("threads", [1, 2, 5], ids=lambda n: f"threads{n}")
@pytest.mark.parametrize("leading", [(), (1,), (7,), (3, 50), (2, 3, 11), (0,)], ids=str)
def test_every_task_of_every_phase_runs_after_those_before(
    leading: tuple[int, ...], threads: int
) -> None:
    arrays = inputs(*leading)
    y, _ = session(arrays, threads=threads).run(None, arrays)
    expected = 3 * arrays["x"].astype(np.float64).sum(-1, keepdims=True)
    assert y.shape == (*leading, 5)
    np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), atol=1e-5)


@pytest.mark.parametrize("pairs", [1, 3, 40], ids=lambda n: f"pairs{n}")
def test_kernels_are_told_what_they_are_called_with(pairs: int) -> None:
    arrays = inputs(2, 3, pairs=pairs)
    _, told = session(arrays).run(None, arrays)
    assert told.tolist()[:4] == [3, FLOAT, 2 + 2 * pairs, 8]


def test_an_input_is_the_callers_memory() -> None:
    arrays = inputs(64)
    _, told = session(arrays).run(None, arrays)
    assert told[4] == arrays["x"].ctypes.data % 4096


@pytest.mark.parametrize(
    ("name", "wrong", "what"),
    [
        ("x", np.float32(1.0), "'x' must be [..., n] float32"),
        ("w", np.ones((5, 7), np.float32), "'w' must be [m, n] float32 or bfloat16"),
        ("w", np.ones(6, np.float32), "'w' must be"),
        ("w", np.ones((5, 6)), "'w' must be"),
        ("a0", np.ones((4, 1), np.float32), "'a' must be [k] float32"),
        ("b0", np.ones(4, np.float32), "'b' must be [2*k] float32"),
        ("b1", np.ones(9, np.float32), "'b' must be"),
        ("x", np.ones((13, 6), np.float32), "thirteen rows are refused"),
        ("x", np.ones((1, 1, 1, 1, 1, 6), np.float32), "'x' must be"),
    ],
    ids=["scalar", "dim", "rank", "type", "group", "twice", "second", "plan", "six dims"],
)
def test_wrong_inputs_fail_the_run_with_the_reason_and_no_more(
    name: str, wrong: Any, what: str
) -> None:
    arrays = inputs(3, pairs=2)
    runs = session(arrays | {name: np.asarray(wrong)})
    with pytest.raises(Exception, match=r"TestRows: ") as caught:
        runs.run(None, arrays | {name: np.asarray(wrong)})
    assert what in str(caught.value)
    good = session(arrays).run(None, arrays)[0]
    assert np.isfinite(good).all()


def test_a_missing_attribute_fails_the_session() -> None:
    with pytest.raises(Exception, match="factor"):
        session(inputs(3), factor=None)


def test_sessions_in_several_threads() -> None:
    failures = []

    def work(number: int) -> None:
        arrays = inputs(1)
        runs = session(arrays)
        for size in range(1, 60):
            x = np.full((size, 6), number, np.float32)
            if size != 13 and (runs.run(None, arrays | {"x": x})[0] != 18 * number).any():
                failures.append((number, size))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_session_may_outlive_who_registered(tmp_path: Path) -> None:
    # as at the end of a process, where modules go in any order
    script = """
import gc, onnxruntime, sys
from longllava_trt.plugins_trt.cpu import register

options = onnxruntime.SessionOptions()
register.register_kernels(options)
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
register._registered = ()
gc.collect()
spoilt = [bytes(size) for size in range(16, 4096)]
del session
"""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    node = helper.make_node(LINEAR, ["x", "w"], ["y"], domain=DOMAIN)
    opsets = [helper.make_opsetid("", 27), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([node], "linear", [x, w], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.onnx")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
