"""Trial of TensorRT-RTX: whether an engine runs on this GPU, and its messages if not.

The network is a matrix product and a ReLU, built here for SM80, for no GPU in particular, or for
the GPU at hand; then deserialised, run once and compared. Each is a step of its own, since a
refusal may end the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.oracles import relative_rms
from benchmarks.gpu.wheels import use_wheels

__all__ = ["current", "default", "sm80"]

_ROWS, _COLUMNS = 32, 64


def sm80(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield how far an engine for SM80 gets."""
    yield from _question(context, "SM80")


def default(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield how far an engine gets for which no target was named."""
    yield from _question(context, None)


def current(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield how far an engine for the GPU at hand gets."""
    yield from _question(context, "CURRENT")


def _question(context: BenchContext, target: str | None) -> Iterator[dict[str, Any]]:
    if context.wheels is not None:
        use_wheels(context.wheels)
    elif not context.is_dry:
        yield {"case": "not run: name TensorRT-RTX's wheels with --wheels"}
        return
    from longllava_trt.plugins_trt.registry import import_tensorrt

    tensorrt = import_tensorrt("tensorrt-rtx")
    yield {"case": "version", "value": tensorrt.version}
    log = _log(tensorrt.module)
    plan = _build(tensorrt.module, log, target)
    if context.is_dry:
        # without a GPU there is none at hand to build for, and that is right
        yield _said("build", ok=(plan is None) == (target == "CURRENT"), log=log)
        return
    yield _said("build", ok=plan is not None, log=log)
    if plan is None:
        return
    runtime = tensorrt.module.Runtime(log)
    validity = runtime.get_engine_validity(plan)
    yield {"case": "validity", "value": str(validity)}
    engine = runtime.deserialize_cuda_engine(plan)
    yield _said("deserialise", ok=engine is not None, log=log)
    if engine is not None:
        yield _execute(engine, log)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.lines.append(f"{severity.name}: {message}")
                print(self.lines[-1], flush=True)

    return Log()


def _said(case: str, *, ok: bool, log: Any) -> dict[str, Any]:
    lines, log.lines = log.lines, []
    return {"case": case, "ok": ok, "value": " / ".join(lines)[:2000]}


def _build(trt: Any, log: Any, target: str | None) -> Any:
    """Return a plan, or None where TensorRT makes none."""
    import numpy as np

    builder = trt.Builder(log)
    network = builder.create_network(0)
    x = network.add_input("x", trt.float16, (-1, _ROWS))
    weights = np.sin(np.arange(_ROWS * _COLUMNS)).astype(np.float16).reshape(_ROWS, _COLUMNS)
    constant = network.add_constant(weights.shape, trt.Weights(weights))
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(x, none, constant.get_output(0), none)
    y = network.add_activation(product.get_output(0), trt.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, _ROWS), (4, _ROWS), (8, _ROWS))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def _execute(engine: Any, log: Any) -> dict[str, Any]:
    import torch

    context = engine.create_execution_context()
    if context is None:
        return _said("execute", ok=False, log=log)
    x = torch.randn(3, _ROWS, device="cuda").half()
    y = torch.full((3, _COLUMNS), torch.nan, device="cuda", dtype=torch.float16)
    weights = torch.sin(torch.arange(_ROWS * _COLUMNS, device="cuda").double())
    expected = (x.double() @ weights.half().double().view(_ROWS, _COLUMNS)).relu()
    context.set_input_shape("x", tuple(x.shape))
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    ran = context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    error = relative_rms(y, expected)
    return _said("execute", ok=bool(ran) and error < 2e-3, log=log) | {"error": error}
