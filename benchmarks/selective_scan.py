"""The selective scan on a CPU, beside what one would use instead, in one run.

    python -m benchmarks.selective_scan [--seq-len 1024] [--d-inner 8192]

Everything gets the same inputs, float32, batch 1, d_state 16, two threads; softplus, skip and gate are inside. Prints
microseconds a token (median of the repeats) and the ratio to ours, then one JSON line.

    ours            the Numba kernel as the operator of an ONNX Runtime session, which is how bundles run it
    body            the operator's ONNX function body in plain ONNX Runtime
    step scan       one ONNX Scan over time in the operator's own layout, everything inside the step
    torch loop      one PyTorch step a token, as the reference does it
    g++             the loop below, g++ -O3 -march=native -ffast-math -fopenmp; d_inner a multiple of 16
    Exp alone       no scan, but ONNX Runtime's Exp of d_inner x d_state values a token, in memory that stays in the cache.
                    Decays differ for every token, channel and state, so that no formulation in ONNX operators takes less
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, parser

from benchmarks.turns import take_turns
from longllava_trt.plugins_trt.bodies import function_bodies
from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
from longllava_trt.plugins_trt.cpu.register import register_kernels
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN
from longllava_trt.reference.operators import ScanInputs, TorchOperators

Arrays = list[NDArray[np.float32]]

_CPP = r"""
#include <cmath>
constexpr int N = 16, W = 16;  // d_state, and channels abreast: what the compiler vectorises
extern "C" void scan(long L, long D, const float* u, const float* dt, const float* A_log, const float* B,
                     const float* C, const float* skip, const float* z, const float* bias, const float* h0,
                     float* y, float* h) {
  #pragma omp parallel for
  for (long d = 0; d < D; d += W) {
    float s[N][W], A[N][W];
    for (int n = 0; n < N; n++)
      for (int w = 0; w < W; w++) { s[n][w] = h0[(d + w) * N + n]; A[n][w] = -expf(A_log[(d + w) * N + n]); }
    for (long t = 0; t < L; t++) {
      float delta[W], dx[W], acc[W];
      for (int w = 0; w < W; w++) {
        float raw = dt[t * D + d + w] + bias[d + w], x = u[t * D + d + w];
        delta[w] = fmaxf(raw, 0.f) + logf(1.f + expf(-fabsf(raw)));
        dx[w] = delta[w] * x;
        acc[w] = skip[d + w] * x;
      }
      for (int n = 0; n < N; n++)
        for (int w = 0; w < W; w++) {
          s[n][w] = expf(delta[w] * A[n][w]) * s[n][w] + dx[w] * B[t * N + n];
          acc[w] += s[n][w] * C[t * N + n];
        }
      for (int w = 0; w < W; w++) {
        float g = z[t * D + d + w];
        y[t * D + d + w] = acc[w] * g / (1.f + expf(-g));
      }
    }
    for (int n = 0; n < N; n++)
      for (int w = 0; w < W; w++) h[(d + w) * N + n] = s[n][w];
  }
}
"""

_STEP_SCAN = """
<ir_version: 11, opset_import: ["": 27]>
step_scan (float[1, L, D] u, float[1, L, D] dt, float[D, N] A_log, float[1, L, N] B, float[1, L, N] C,
    float[D] Ds, float[1, L, D] z, float[D] bias, float[1, D, N] state) => (float[1, L, D] y, float[1, D, N] h) {
    eA = Exp(A_log)
    A = Neg(eA)
    last = Constant<value_ints = [-1]>()
    one = Constant<value_ints = [1]>()
    h, y = Scan<num_scan_inputs = 5, scan_input_axes = [1, 1, 1, 1, 1], scan_output_axes = [1],
        body = step (float[1, D, N] s, float[1, D] u_t, float[1, D] dt_t, float[1, N] B_t, float[1, N] C_t,
        float[1, D] z_t) => (float[1, D, N] s_next, float[1, D] y_t) {
        raw = Add(dt_t, bias)
        delta = Softplus(raw)
        delta_c = Unsqueeze(delta, last)
        e = Mul(delta_c, A)
        decay = Exp(e)
        kept = Mul(decay, s)
        du = Mul(delta, u_t)
        du_c = Unsqueeze(du, last)
        B_r = Unsqueeze(B_t, one)
        new = Mul(du_c, B_r)
        s_next = Add(kept, new)
        C_r = Unsqueeze(C_t, one)
        hc = Mul(s_next, C_r)
        sum = ReduceSum<keepdims = 0>(hc, last)
        skip = Mul(Ds, u_t)
        full = Add(sum, skip)
        sig = Sigmoid(z_t)
        gate = Mul(z_t, sig)
        y_t = Mul(full, gate)
    }>(state, u, dt, B, C, z)
}
"""


def make_inputs(seq_len: int, d_inner: int, d_state: int = 16) -> Arrays:
    """Return seeded inputs in the operator's order, scaled as a trained model's are."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    rates = np.tile(np.log(np.arange(1, d_state + 1, dtype=np.float32)), (d_inner, 1))
    steps = normal(1, seq_len, d_inner)
    bc = [normal(1, seq_len, d_state) for _ in range(2)]
    return [
        normal(1, seq_len, d_inner),
        steps,
        rates,
        *bc,
        normal(d_inner),
        normal(1, seq_len, d_inner),
        normal(d_inner) - 4,
        normal(1, d_inner, d_state),
    ]


def operator_session(*, fast: bool, threads: int) -> onnxruntime.InferenceSession:
    """Return a session over the one operator, with its kernel or with its body."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (*SELECTIVE_SCAN.input_names, *SELECTIVE_SCAN.output_names)
    ]
    count = len(SELECTIVE_SCAN.inputs)
    node = helper.make_node(
        SELECTIVE_SCAN.op_type,
        SELECTIVE_SCAN.input_names,
        SELECTIVE_SCAN.output_names,
        domain=SELECTIVE_SCAN.domain,
    )
    model = helper.make_model(
        helper.make_graph([node], "scan", values[:count], values[count:]),
        opset_imports=[helper.make_opsetid("", 27), helper.make_opsetid("longllava", 1)],
        functions=function_bodies(),
        ir_version=11,
    )
    return session(lower_for_cpu(model) if fast else model, fast=fast, threads=threads)


def session(
    model: onnx.ModelProto, *, fast: bool = False, threads: int
) -> onnxruntime.InferenceSession:
    """Load a model on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if fast:
        register_kernels(options)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def compiled_loop(arrays: Arrays, folder: Path, threads: int) -> Callable[[], NDArray[np.float32]]:
    """Compile the C++ loop and return it, bound to its inputs."""
    (folder / "scan.cpp").write_text(_CPP)
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]
    subprocess.run(["g++", *flags, "-c", "scan.cpp", "-o", "scan.o"], cwd=folder, check=True)
    # linked without -ffast-math, with which loading it would flush denormals in the whole process
    link = ["g++", "-shared", "-fopenmp", "scan.o", "-o", "scan.so"]
    subprocess.run(link, cwd=folder, check=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    function = ctypes.CDLL(str(folder / "scan.so")).scan

    _, seq_len, d_inner = arrays[0].shape
    # it lives as long as the function, which hands out addresses only
    memory = [*arrays, np.empty_like(arrays[0]), np.empty_like(arrays[-1])]

    def run() -> NDArray[np.float32]:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in memory]
        function(ctypes.c_long(seq_len), ctypes.c_long(d_inner), *pointers)
        return memory[-2]

    return run


def bound(
    session: onnxruntime.InferenceSession, feed: dict[str, NDArray[np.float32]]
) -> Callable[[], NDArray[np.float32]]:
    """Return a session's run into memory that is used again, as the decoder does with its states."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    first, *_, last = feed.values()
    # they live as long as the function: the binding knows their addresses only
    outputs = [np.full_like(array, np.nan) for array in (first, last)]
    for output, array in zip(session.get_outputs(), outputs, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_output(output.name, value)

    def run() -> NDArray[np.float32]:
        session.run_with_iobinding(binding)
        return outputs[0]

    return run


def contestants(arrays: Arrays, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Return each way to run the scan, bound to its inputs."""
    feed = dict(zip(SELECTIVE_SCAN.input_names, arrays, strict=True))
    ours, body = (operator_session(fast=fast, threads=threads) for fast in (True, False))
    steps = session(parser.parse_model(_STEP_SCAN), threads=threads)
    names = ["u", "dt", "A_log", "B", "C", "Ds", "z", "bias", "state"]
    steps_feed = dict(zip(names, arrays, strict=True))
    tensors = ScanInputs(*map(torch.from_numpy, arrays))

    def torch_loop() -> NDArray[np.float32]:
        y: NDArray[np.float32] = TorchOperators().selective_scan(tensors)[0].numpy()
        return y

    return {
        "ours": bound(ours, feed),
        "body": bound(body, feed),
        "step scan": bound(steps, steps_feed),
        "torch loop": torch_loop,
        "g++": compiled_loop(arrays, folder, threads),
    }


def exponentials(arrays: Arrays, threads: int) -> Callable[[], None]:
    """Return ONNX Runtime's Exp of every decay's exponent, a few tokens a call, into memory that is used again."""
    seq_len = arrays[0].shape[1]
    # the fastest: one token is small for its call, and many outgrow the cache
    tokens = max(n for n in range(1, 9) if seq_len % n == 0)
    delta = np.logaddexp(arrays[1][0, :tokens] + arrays[7], 0)
    exponents = (delta[:, None] * -np.exp(arrays[2].T)).astype(np.float32, order="C")
    model = '<ir_version: 11, opset_import: ["": 27]> exp (float[T, N, D] x) => (float[T, N, D] y) { y = Exp(x) }'
    exp = session(parser.parse_model(model), threads=threads)
    binding = exp.io_binding()
    # memory of ONNX Runtime's own, which lives as long as the binding
    x, y = (
        onnxruntime.OrtValue.ortvalue_from_shape_and_type(exponents.shape, np.float32)
        for _ in range(2)
    )
    x.update_inplace(exponents)
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)

    def run() -> None:
        for _ in range(seq_len // tokens):
            exp.run_with_iobinding(binding)

    run()
    assert np.allclose(y.numpy(), np.exp(exponents), rtol=1e-5), "Bug: not the exponentials"
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line; returns 1 if the results disagree."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parse.add_argument("--seq-len", type=int, default=1024)
    parse.add_argument("--d-inner", type=int, default=8192)
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--repeats", type=int, default=5)
    args = parse.parse_args(arguments)
    torch.set_num_threads(args.threads)
    arrays = make_inputs(args.seq_len, args.d_inner)
    with tempfile.TemporaryDirectory() as folder:
        ways = contestants(arrays, Path(folder), args.threads)
        results = {name: np.asarray(run()) for name, run in ways.items()}
        ways["Exp alone"] = exponentials(arrays, args.threads)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for name, run in take_turns(ways.items(), rounds=args.repeats):
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) / args.seq_len * 1e6)
    medians = {name: statistics.median(values) for name, values in times.items()}
    scale = float(np.sqrt(np.mean(results["torch loop"] ** 2)))
    errors = {
        name: float(np.sqrt(np.mean((y - results["torch loop"]) ** 2))) / scale
        for name, y in results.items()
    }
    print(f"{'':12}{'x ours':>8}{'us a token':>12}{'error':>10}")
    for name, median in medians.items():
        error = f"{errors[name]:10.0e}" if name in errors else ""
        print(f"{name:12}{median / medians['ours']:8.2f}{median:12.1f}{error}")
    best, done = (medians["step scan"] / medians[name] for name in ("Exp alone", "body"))
    print(f"a step scan takes {done:.1f} times the body, and {best:.1f} times Exp alone")
    setting = {key: getattr(args, key) for key in ("seq_len", "d_inner", "threads", "repeats")}
    print(json.dumps(setting | {"us_per_token": medians, "relative_rms": errors}))
    return 0 if max(errors.values()) < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
