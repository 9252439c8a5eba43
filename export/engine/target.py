"""GPU architectures: the one that an engine is built for, and those that a TensorRT supports."""

from __future__ import annotations

from typing import Any

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.plugins_trt.registry import TensorRT

__all__ = ["resolve_target", "runs_nowhere", "set_target", "supported_targets"]

_OLDEST = 80
"""The first architecture with bfloat16."""
_RTX_RUNS_ON = ("7.5", "8.6", "8.9", "12.x")
"""Compute capabilities in TensorRT-RTX's support matrix, which has 8.0 only for building ahead."""


def supported_targets(tensorrt: TensorRT) -> tuple[str, ...]:
    """Return the architectures that engines can be built for on this machine.

    TensorRT-RTX builds ahead of time for every architecture that it knows. The full TensorRT
    measures kernels on the GPU, so it builds only for this machine's GPU.
    """
    known = getattr(tensorrt.module, "ComputeCapability", None)
    if tensorrt.flavour == "tensorrt-rtx" and known is not None:
        names = (name.lower() for name in known.__members__ if name.startswith("SM"))
        return tuple(name for name in names if int(name.removeprefix("sm")) >= _OLDEST)
    here = current_target()
    return (here,) if here else ()


def runs_nowhere(flavour: str, target: str) -> str | None:
    """Return the reason why no GPU runs a flavour's engines, and what to do; None if one does.

    Args:
        flavour: `tensorrt` or `tensorrt-rtx`.
        target: From `resolve_target`.
    """
    if flavour == "tensorrt" or target not in {"sm80", "sm90"}:
        return None
    return (
        f"engines of tensorrt-rtx for {target} check that everything builds: TensorRT-RTX runs on compute capability "
        f"{', '.join(_RTX_RUNS_ON)} alone; on an A100 or H100, build there with --flavour tensorrt"
    )


def resolve_target(tensorrt: TensorRT, target: str) -> str:
    """Return the architecture that a user's value of `target` means.

    Args:
        tensorrt: TensorRT that will build.
        target: An architecture such as `sm80`, or `current` for this machine's GPU.

    Raises:
        InputError: If this TensorRT cannot build for it; names those that it supports.
        MissingDependencyError: If `current` is given and there is no GPU.
    """
    supported = supported_targets(tensorrt)
    wanted = target
    if target == "current":
        wanted = current_target() or ""
        if not wanted:
            raise MissingDependencyError(
                "target: 'current' is the GPU of this machine, but there is none, or no driver; name one of "
                + (", ".join(supported) or "those of tensorrt-rtx: --flavour tensorrt-rtx")
            )
    if wanted not in supported:
        raise InputError(
            f"target: {tensorrt.flavour} {tensorrt.version} on this machine builds for "
            f"{', '.join(supported) or 'no GPU, since it finds none'}, got '{wanted}'; choose one of them"
            + _other_flavour(tensorrt)
        )
    return wanted


def _other_flavour(tensorrt: TensorRT) -> str:
    if tensorrt.flavour == "tensorrt":
        return ", or --flavour tensorrt-rtx, which builds without a GPU"
    return ", or build on a machine that has such a GPU with --flavour tensorrt"


def set_target(tensorrt: TensorRT, config: Any, target: str) -> None:
    """Make a builder config build for an architecture from `resolve_target`."""
    if tensorrt.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        capability = getattr(tensorrt.module.ComputeCapability, target.upper())
        config.set_compute_capability(capability, 0)
