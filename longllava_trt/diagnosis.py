"""Is this machine able to run a bundle: what is installed, and do the CPU kernels compute right here.

Nothing in here raises because something is absent; a finding says so.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from longllava_trt.core.errors import LongLLaVAError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Finding", "diagnose"]

Status = Literal["ok", "absent", "failed"]

_CPU_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16"),
    *("asimd", "sve", "bf16"),
)
_DEVELOPMENT_EXTRAS = {"demo", "dev"}
_SIZES = {"batch": 1, "seq_len": 7, "d_inner": 40, "d_state": 16}
_TOLERANCE = 1e-5
"""Relative, float32: the kernel and the function body sum in different orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the diagnosis."""

    topic: str
    status: Status
    """`absent`: not there and not needed to run a bundle. `failed`: needed, and not there or not right."""
    detail: str


def diagnose(*, plugins: Path | None = None) -> list[Finding]:
    """Look at this machine; it can run a bundle on its CPU unless a finding is `failed`.

    Args:
        plugins: A plugin library to load into TensorRT as well.
    """
    findings = [*_machine(), *_packages(), *_providers(), *_gpu(), *_tensorrt(plugins)]
    findings += _backends()
    if not any(f.status == "failed" for f in findings):
        findings.append(_kernels())
    return findings


def _machine() -> Iterator[Finding]:
    yield Finding(
        topic="Python", status="ok", detail=f"{platform.python_version()} on {platform.platform()}"
    )
    words = set(re.findall(r"\w+", _read("/proc/cpuinfo")))
    features = " ".join(f for f in _CPU_FEATURES if f in words) or "features unknown"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        topic="CPU", status="ok", detail=f"{platform.machine()}, {usable} cores usable, {features}"
    )
    memory = dict(re.findall(r"(\w+): +(\d+) kB", _read("/proc/meminfo")))
    if "MemTotal" in memory:
        total, free = (int(memory.get(k, 0)) * 1024 / 2**30 for k in ("MemTotal", "MemAvailable"))
        yield Finding(topic="RAM", status="ok", detail=f"{total:.1f} GiB, {free:.1f} GiB available")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _packages() -> Iterator[Finding]:
    """Yield one finding a dependency, by this project's own metadata."""
    try:
        requirements = requires("longllava-trt") or []
    except PackageNotFoundError:
        yield Finding(
            topic="longllava-trt", status="absent", detail="not installed: running from a checkout"
        )
        return
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name, extra = _parse(requirement)
        if name != "longllava-trt" and extra not in _DEVELOPMENT_EXTRAS:
            extras.setdefault(name, []).append(extra)
    for name, providers in extras.items():
        needed = "" in providers
        found = _version(name)
        install = "longllava-trt" if needed else f"'longllava-trt[{providers[0]}]'"
        yield Finding(
            topic=name,
            status="ok" if found else "failed" if needed else "absent",
            detail=found or f"not installed; pip install {install}",
        )


def _parse(requirement: str) -> tuple[str, str]:
    """Return a requirement's package and the extra it belongs to, or '' for the core."""
    name, extra = (
        re.match(r"[\w.-]+", requirement),
        re.search(r"extra == ['\"]([^'\"]+)", requirement),
    )
    return name[0] if name else "", extra[1] if extra else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> Iterator[Finding]:
    try:
        import onnxruntime

        names = onnxruntime.get_available_providers()
    except ImportError as err:
        yield Finding(
            topic="ONNX Runtime",
            status="failed",
            detail=f"cannot be imported ({err}); reinstall it",
        )
        return
    status: Status = "ok" if "CPUExecutionProvider" in names else "failed"
    yield Finding(topic="ONNX Runtime", status=status, detail=", ".join(names))


def _gpu() -> Iterator[Finding]:
    driver = ctypes.util.find_library("cuda")
    yield Finding(
        topic="CUDA driver",
        status="ok" if driver else "absent",
        detail=driver or "not installed; a CPU is enough to run a bundle",
    )


def _tensorrt(plugins: Path | None) -> Iterator[Finding]:
    """Yield what can build engines here and for what, and what a plugin library gives it."""
    from longllava_trt.export.engine.target import runs_nowhere, supported_targets
    from longllava_trt.plugins_trt.registry import import_tensorrt, load_plugins

    try:
        tensorrt = import_tensorrt()
    except LongLLaVAError as err:
        yield Finding(topic="TensorRT", status="absent", detail=f"{err}; a CPU runs ONNX bundles")
        return
    supported = supported_targets(tensorrt)
    targets = ", ".join(supported) or "no GPU, since none is here"
    # the one that everybody with an A100 will ask for
    caveat = "sm80" in supported and runs_nowhere(tensorrt.flavour, "sm80")
    yield Finding(
        topic="TensorRT",
        status="ok",
        detail=f"{tensorrt.flavour} {tensorrt.version}, builds engines for {targets}"
        + (f"; {caveat}" if caveat else ""),
    )
    if plugins is None:
        return
    try:
        creators = load_plugins(tensorrt, plugins)
    except LongLLaVAError as err:
        yield Finding(topic="plugins", status="failed", detail=str(err))
        return
    names = ", ".join(f"{name} {version}" for name, version in creators.items())
    yield Finding(topic="plugins", status="ok", detail=f"{names} in {plugins}")


def _backends() -> Iterator[Finding]:
    """Yield what can be said to `--backend` here, and why not the others."""
    from longllava_trt.runtime.usable_backends import describe_auto, find_backends

    found = find_backends()
    yield Finding(topic="--backend auto", status="ok", detail=describe_auto(found))
    for name, backend in found.items():
        status: Status = "ok" if backend.usable else "absent"
        yield Finding(topic=f"--backend {name}", status=status, detail=backend.detail)


def _kernels() -> Finding:
    """Run the selective scan by the fast kernel and by its function body, and compare."""
    topic = "fast kernels"
    try:
        inputs = _scan_inputs()
        begin = time.perf_counter()
        fast = _run_scan(inputs, fast=True)
        seconds = time.perf_counter() - begin
        body = _run_scan(inputs, fast=False)
    except (LongLLaVAError, ImportError) as err:
        return Finding(topic=topic, status="failed", detail=" ".join(str(err).split()))
    except Exception as err:  # noqa: BLE001 - whatever breaks here is the finding
        return Finding(topic=topic, status="failed", detail=f"{type(err).__name__}: {err}")
    error = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(fast, body, strict=True)
    )
    # written so that NaN fails
    if not error <= _TOLERANCE:
        return Finding(
            topic=topic,
            status="failed",
            detail=f"wrong here: relative error {error:.1e}, expected at most {_TOLERANCE:.0e}; "
            "use --kernels onnx and report this",
        )
    return Finding(
        topic=topic,
        status="ok",
        detail=f"right to {error:.0e}, ready after {seconds:.2f} s (compiled code is kept on disk)",
    )


def _scan_inputs() -> dict[str, NDArray[np.float32]]:
    from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN

    rng = np.random.default_rng(0)
    return {
        value.name: rng.standard_normal([_SIZES[str(axis)] for axis in value.axes]).astype(
            np.float32
        )
        for value in SELECTIVE_SCAN.inputs
    }


def _run_scan(inputs: dict[str, NDArray[np.float32]], *, fast: bool) -> list[NDArray[np.float32]]:
    import onnxruntime

    from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
    from longllava_trt.plugins_trt.cpu.register import register_kernels

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = _scan_model()
    if fast:
        model = lower_for_cpu(model)
        register_kernels(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Any] = session.run(None, inputs)
    return outputs


def _scan_model() -> onnx.ModelProto:
    """Return a graph of one SelectiveScan with its function body."""
    from onnx import TensorProto, helper

    from longllava_trt.plugins_trt.bodies import function_bodies
    from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN

    def declare(values: Any) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                v.name, TensorProto.FLOAT, [_SIZES[str(a)] for a in v.axes]
            )
            for v in values
        ]

    spec = SELECTIVE_SCAN
    node = helper.make_node(
        spec.op_type, list(spec.input_names), list(spec.output_names), domain=spec.domain
    )
    bodies = [f for f in function_bodies() if (f.domain, f.name) == (spec.domain, spec.op_type)]
    opsets = [o for body in bodies for o in body.opset_import]
    opsets.append(helper.make_opsetid(spec.domain, spec.version))
    graph = helper.make_graph([node], spec.op_type, declare(spec.inputs), declare(spec.outputs))
    return helper.make_model(
        graph,
        opset_imports=opsets,
        functions=bodies,
        ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
    )
