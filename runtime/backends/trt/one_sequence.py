"""An engine may take several sequences at once; this runtime feeds one."""

from __future__ import annotations

from dataclasses import replace

from longllava_trt.core.stage_spec import TensorSpec

__all__ = ["of_one_sequence"]


def of_one_sequence(spec: TensorSpec) -> TensorSpec:
    """Return a tensor's contract with a batch of 1."""
    return replace(spec, shape=tuple(1 if dim == "batch" else dim for dim in spec.shape))
