"""Every name of cuda-python that the runtime calls is in the package, where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[4] / "runtime" / "backends" / "trt" / "cuda.py"


def names() -> set[str]:
    text = SOURCE.read_text(encoding="utf-8")
    called = re.findall(r'"(cuda[A-Z]\w+)"', text)
    return {name for name in called if not name.startswith("cudaError")} | set(
        re.findall(r"_runtime\.(cuda\w+(?:\.cuda\w+)?)", text)
    )


def test_names_are_found() -> None:
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaMemcpyKind.cudaMemcpyDefault"} <= names()
    assert "cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed" in names()


def test_names_are_those_of_cuda_python() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="names of CUDA are unproven: no cuda-python"
    )
    missing = set()
    for name in names():
        found = runtime
        for word in name.split("."):
            found = getattr(found, word, None)
        if found is None:
            missing.add(name)
    assert missing == set()
    assert hasattr(runtime.cudaDeviceProp, "name")
