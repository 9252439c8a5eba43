"""For which GPU architecture an engine is built, and which ones a TensorRT can build for."""

from __future__ import annotations

from typing import Any

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.plugins_trt.registry import TensorRT

__all__ = ["resolve_target", "runs_nowhere", "set_target", "supported_targets"]

_OLDEST = 80
"""The first architecture with bfloat16."""
_RTX_RUNS_ON = ("7.5", "8.6", "8.9", "12.x")
"""Compute capabilities in TensorRT-RTX's support matrix; it names 8.0 only where it is about building ahead of time."""


def supported_targets(tensorrt: TensorRT) -> tuple[str, ...]:
    """Return the architectures that engines can be built for on this machine.

    TensorRT-RTX builds ahead of time for what it knows. The full TensorRT times kernels on the GPU it builds for, so
    it builds for that one alone.
    """
    known = getattr(tensorrt.module, "ComputeCapability", None)
    if tensorrt.flavour == "tensorrt-rtx" and known is not None:
        names = (name.lower() for name in known.__members__ if name.startswith("SM"))
        return tuple(name for name in names if int(name.removeprefix("sm")) >= _OLDEST)
    here = current_target()
    return (here,) if here else ()


def runs_nowhere(flavour: str, target: str) -> str | None:
    """Say why engines of a flavour have no GPU to run on, and what has; None if they have one.

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
    """Return the architecture that a user's word stands for.

    Args:
        tensorrt: Who is to build.
        target: `sm80` and the like, or `current` for the GPU at hand.

    Raises:
        InputError: If this TensorRT cannot build for it; names what it can.
        MissingDependencyError: If there is no GPU that `current` could mean.
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
