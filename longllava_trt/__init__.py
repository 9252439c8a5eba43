"""LongLLaVA on ONNX and TensorRT: from a checkpoint to answers about many images.

Every room is a folder beside this package and is imported through it; imports point downwards only:

    cli/ validation/ planning/ bench/   verbs, parity with the reference, forecasts, measurements
    export/ runtime/                    checkpoint to bundle and engines; a bundle to answers, without PyTorch
    reference/ plugins_trt/             the model in plain PyTorch; the custom operators
    models/                             what a model is, as data
    core/                               errors, files, digests, manifest, parity; knows no model

`export` and `runtime` meet only in the bundle on disk. In Python:

    from longllava_trt import LongLLaVA
    answer = LongLLaVA.from_bundle("bundle").chat("What do these have in common?", ["a.jpg", "b.jpg"])

The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longllava_trt.core.version import __version__

if TYPE_CHECKING:
    from longllava_trt.core.errors import (
        CheckpointError,
        ConfigError,
        ContractError,
        ExportError,
        InputError,
        LongLLaVAError,
        ManifestError,
        MissingDependencyError,
        ParityError,
    )
    from longllava_trt.export.bundle import export_bundle
    from longllava_trt.runtime.inputs.message import MediaOptions
    from longllava_trt.runtime.model import LongLLaVA, RunOptions
    from longllava_trt.runtime.sampling import SamplingParams

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContractError",
    "ExportError",
    "InputError",
    "LongLLaVA",
    "LongLLaVAError",
    "ManifestError",
    "MediaOptions",
    "MissingDependencyError",
    "ParityError",
    "RunOptions",
    "SamplingParams",
    "__version__",
    "export_bundle",
]


_ELSEWHERE = {
    "LongLLaVA": "longllava_trt.runtime.model",
    "MediaOptions": "longllava_trt.runtime.inputs.message",
    "RunOptions": "longllava_trt.runtime.model",
    "SamplingParams": "longllava_trt.runtime.sampling",
    "export_bundle": "longllava_trt.export.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_ELSEWHERE.get(name, "longllava_trt.core.errors")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
