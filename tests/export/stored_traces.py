"""Exports that trace each stage of each model once in a run of the tests, whichever process comes first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.export import bundle as bundle_module
from longllava_trt.export.trace import trace_stage
from longllava_trt.models.spec import ModelSpec


@contextmanager
def stored_traces(folder: Path) -> Iterator[None]:
    """Let exports of this process take from a folder what was traced before, and put there what was not.

    A trace depends on nothing but the arguments of `trace_stage`, and takes seconds; all that an export does with
    one, it still does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "trace_stage", stored_in(folder))
        yield


def traces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the workers of one run share, and no other run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    return folder


def stored_in(folder: Path) -> Callable[..., ir.Model]:
    """Return a stand-in for `trace_stage` with a memory."""

    def trace(
        config: ModelSpec, spec: StageSpec, *, dtype: str, moe_quant: MoeQuant = "none"
    ) -> ir.Model:
        key = hashlib.sha256(repr((config, spec, dtype, moe_quant)).encode()).hexdigest()
        file = folder / f"{spec.name}-{key}.onnx"
        if not file.exists():
            traced = ir.to_proto(trace_stage(config, spec, dtype=dtype, moe_quant=moe_quant))
            part = file.with_suffix(f".{os.getpid()}")
            part.write_bytes(traced.SerializeToString())
            part.replace(file)
        return ir.from_proto(onnx.load(file))

    return trace
