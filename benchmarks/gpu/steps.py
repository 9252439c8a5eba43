"""The steps of the GPU benchmarks, most important first: subject, code and time limit of each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from benchmarks.gpu.context import BenchContext

__all__ = ["STEPS", "Measure", "Row", "Step", "load"]

Row = dict[str, Any]
"""One line of a step's table: `case` first, then figures; flat, and plain JSON."""


class Measure(Protocol):
    """A step's function."""

    def __call__(self, context: BenchContext) -> Iterator[Row]:
        """Yield rows, each as soon as it is known."""


@dataclass(frozen=True, slots=True)
class Step:
    """One process of its own, so that its crash or hang costs nothing else."""

    name: str
    place: str
    """`module:function` below this folder."""
    seconds: int
    """Longest it may take."""
    about: str


STEPS = (
    Step("gpu-info", "gpu_info:gpu_info", 60, "The GPU, versions, and the three measured limits"),
    Step("plugin", "plugin:plugin", 60, "The plugin library's host code, through its C interface"),
    Step("plugin-ptx", "plugin:plugin_ptx", 60, "The same, of a library that knows no newer GPU"),
    Step(
        "answers", "answers:answers", 90, "The trained checkpoint's answers about marked pictures"
    ),
    Step("decoder-9b", "decoder:decoder_9b", 120, "The 9B on our kernels, with random weights"),
    Step("decoder-53b", "decoder:decoder_53b", 150, "The 53B with int8 experts, likewise"),
    Step("images", "images:images", 120, "1000 images from end to end, with random weights"),
    Step("attention", "attention:attention", 120, "CachedAttention, likewise, beside PyTorch's"),
    Step("scan", "scan:scan", 60, "SelectiveScan against float64, plain PyTorch and its roofline"),
    Step("moe", "moe:moe", 90, "SparseMoE against float64, plain PyTorch and its roofline"),
    Step("conv", "conv:conv", 45, "CausalConvWithState, likewise"),
    Step("tests", "kernel_tests:kernel_tests", 240, "The kernels' own tests, on the GPU"),
    Step("alternatives", "alternatives:alternatives", 150, "Two layers: PyTorch, compiled, ours"),
    Step(
        "baselines", "baselines:baselines", 150, "PyTorch: eager, compiled, and its own attention"
    ),
    Step("mamba", "mamba:mamba", 400, "mamba-ssm's own CUDA scan, compiled from its source"),
    Step("tune-scan", "tuning:tune_scan", 150, "Scan: chunks, channels and warps of a program"),
    Step("tune-moe", "tuning:tune_moe", 240, "Experts: tiles by number of tokens"),
    Step("engine-sm80", "rtx:sm80", 60, "Does an engine made for SM80 run here?"),
    Step("engine-default", "rtx:default", 60, "Does an engine made for no GPU in particular?"),
    Step("engine-current", "rtx:current", 60, "Does an engine made for the GPU at hand?"),
    Step("stages", "stages:stages", 150, "The bundle's engines, through the runtime's sessions"),
    Step("scale", "scale:scale", 300, "Decoders of the published sizes, as engines"),
    Step("gpu-tests", "kernel_tests:gpu_tests", 150, "Tests marked gpu"),
)


def load(step: Step) -> Measure:
    """Import a step's function, and with it what it needs."""
    module, _, function = step.place.partition(":")
    found = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    return cast("Measure", found)
