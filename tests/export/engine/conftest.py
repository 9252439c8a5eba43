"""TensorRT, a plugin library for it, and a bundle in the dtype of deployments."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.plugins_trt.registry import TensorRT, import_tensorrt, load_plugins
from tests.export.stored_traces import stored_traces

TINY_HEADS = ((16, 2),)
"""Elements of a head, and heads that share a key/value head, of the preset `tiny`."""


@pytest.fixture(scope="session")
def tensorrt() -> TensorRT:
    try:
        return import_tensorrt()
    except LongLLaVAError as err:
        pytest.skip(f"engines are unproven: {err}")


@pytest.fixture(scope="session")
def plugin_library(tensorrt: TensorRT) -> Path:
    """The library that a build for an A100 in bfloat16 compiles; engines are not run here."""
    from longllava_trt.plugins_trt.library.build import build_library

    return build_library(
        archs=[80], dtypes=["bf16"], weight_formats=["none"], heads=TINY_HEADS
    ).path


@pytest.fixture
def plugins(tensorrt: TensorRT, plugin_library: Path) -> None:
    """The library, registered."""
    load_plugins(tensorrt, plugin_library)


@pytest.fixture(scope="session")
def bfloat16_bundle(tiny_checkpoint: Path, traces: Path) -> Path:
    """The tiny checkpoint in bfloat16, with casts behind its weights; not to be written to."""
    from longllava_trt.export.bundle import export_bundle

    bundle = tiny_checkpoint.with_name("bfloat16")
    with stored_traces(traces):
        export_bundle(tiny_checkpoint, bundle, dtype="bfloat16")
    return bundle
