"""Kernels run on the CPU, under Triton's interpreter, unless TRITON_INTERPRET=0 sends them to the GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests where there is nothing to run them with."""
    reason = "Triton is not installed, so no kernel is tested: install longllava-trt[plugins]"
    for item in items:
        if not HAS_TRITON and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _bfloat16_is_rounded() -> Iterator[None]:
    """Round to nearest even on the way to bfloat16, as a GPU does.

    Triton 3.9's interpreter truncates instead, which doubles the error of every output; remove this
    once it rounds.
    """
    if not (HAS_TRITON and INTERPRETED):
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) == (tl.float32, tl.bfloat16):
            return data.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
        return np.asarray(convert(data, source, target, mode))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", rounding)
        yield


@pytest.fixture
def bfloat16_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply bfloat16, and make it from integers, as a GPU does.

    Triton 3.9's interpreter does either with the bit patterns; remove this once it does not.
    """
    if not (HAS_TRITON and INTERPRETED):
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def cast_in_steps(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar.is_int() and target.scalar == tl.bfloat16:
            source = cast(self, source, tl.float32)
        return cast(self, source, target)

    def widened(self: Any, factor: Any) -> np.ndarray:
        is_bfloat16 = factor.dtype.scalar == tl.bfloat16
        data: np.ndarray = (cast(self, factor, tl.float32) if is_bfloat16 else factor).data
        return data

    def dot(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        product = np.matmul(widened(self, a), widened(self, b), dtype=np.float32)
        return TensorHandle(product + total.data, total.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_in_steps)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.fixture(autouse=True)
def _fresh_tensors_are_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the launchers outputs and workspaces full of NaN, or of -1."""
    import torch

    empty = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, size: Any, **options: Any) -> torch.Tensor:
        buffer = empty(self, size, **options)
        return buffer.fill_(torch.nan if buffer.is_floating_point() else -1)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def _on_device(arrays: dict[str, np.ndarray], dtype: str = "float32") -> dict[str, Any]:
    """Return tensors where the kernels run, all but the scan's state cast."""
    import torch

    device, cast = "cpu" if INTERPRETED else "cuda", getattr(torch, dtype)
    return {
        name: torch.from_numpy(a.copy()).to(device, torch.float32 if name == "state" else cast)
        for name, a in arrays.items()
    }


def _as_arrays(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return float64 copies, for an oracle that is to see what the kernel saw."""
    return {name: tensor.double().cpu().numpy() for name, tensor in tensors.items()}


@pytest.fixture
def on_device() -> Callable[..., dict[str, Any]]:
    return _on_device


@pytest.fixture
def as_arrays() -> Callable[[dict[str, Any]], dict[str, np.ndarray]]:
    return _as_arrays
