"""Exports that trace a stage once, for tests of what happens around the graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.export import bundle as bundle_module

_export_stage = bundle_module._export_stage


def traced_once() -> Callable[..., Any]:
    """Return a stand-in for `_export_stage` that traces each stage of one model once, and then repeats itself."""
    done: dict[tuple[str, ...], tuple[bytes, Any]] = {}

    def export(
        config: Any, name: str, dtype: str, sources: Any, staging: Path, experts: Any
    ) -> Any:
        key = (name, dtype, experts.quant)
        file = staging / f"{name}.onnx"
        if key not in done:
            records = _export_stage(config, name, dtype, sources, staging, experts)
            done[key] = (file.read_bytes(), records)
        file.write_bytes(done[key][0])
        return done[key][1]

    return export


@cache
def _of_this_session() -> Callable[..., Any]:
    return traced_once()


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch, traced_before: None) -> Callable[..., Any]:
    """`export_bundle` of the tiny checkpoint, or of another with the same headers."""
    monkeypatch.setattr(bundle_module, "_export_stage", _of_this_session())
    return bundle_module.export_bundle
