"""`longllava-trt inspect ENGINES`: what TensorRT made of each stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from longllava_trt.cli.options import format_bytes
from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.engine_record import EngineRecord, EngineStage
from longllava_trt.core.kernel_record import Kernel, KernelTensor, ProfileKernels

__all__ = ["engine_document", "engine_lines"]


def engine_document(record: EngineRecord, *, kernels: bool) -> dict[str, Any]:
    """Return what `--json` prints; each kernel only if asked for."""
    return {
        "target": record.target,
        "flavour": record.flavour,
        "tensorrt_version": record.tensorrt_version,
        "dtype": record.dtype,
        "options": dict(record.options),
        "stages": {
            name: {
                "file": stage.file,
                "nbytes": stage.nbytes,
                "plugins": dict(stage.plugins),
                "attention": dict(stage.attention),
                "profiles": {
                    profile: _profile_document(found, kernels=kernels)
                    for profile, found in stage.kernels.items()
                },
            }
            for name, stage in record.stages.items()
        },
    }


def _profile_document(found: ProfileKernels, *, kernels: bool) -> dict[str, Any]:
    document = {**found.to_json(), "launches": found.launches, "kinds": dict(found.kinds())}
    if not kernels:
        del document["kernels"]
    return document


def engine_lines(record: EngineRecord, *, kernels: bool) -> Iterator[str]:
    """Yield the tables; each kernel only if asked for."""
    yield f"engines     {record.target}, {record.flavour} {record.tensorrt_version}, {record.dtype}"
    yield f"            {'stage':10} {'profile':8} {'kernels':>7} {'scratch':>9}  kinds"
    for name, stage in record.stages.items():
        yield from _stage_lines(name, stage)
    excesses = _excesses(record.stages)
    if excesses:
        yield "over budget"
        yield from (f"            {line}" for line in excesses)
    if kernels:
        for name, stage in record.stages.items():
            for profile, found in stage.kernels.items():
                yield ""
                yield f"{name}, {profile}: kind, reads, writes, kernel"
                yield from map(_kernel_line, found.kernels)


def _stage_lines(name: str, stage: EngineStage) -> Iterator[str]:
    if not stage.kernels:
        yield f"            {name:10} kernels are not recorded; build the engine again with tensorrt-rtx"
    for profile, found in stage.kernels.items():
        kinds = ", ".join(f"{kind} x {n}" for kind, n in sorted(found.kinds().items()))
        yield (
            f"            {name:10} {profile:8} {found.launches:>7} "
            f"{format_bytes(found.scratch_bytes):>9}  {kinds}"
        )


def _excesses(stages: Mapping[str, EngineStage]) -> list[str]:
    found = [
        (f"{name}, {profile}: {excess.budget}: {excess.excess}", excess)
        for name, stage in stages.items()
        for profile, kernels in stage.kernels.items()
        for excess in kernels.excesses
    ]
    reasons = dict.fromkeys(f"{excess.reason}; cure: {excess.cure}" for _, excess in found)
    return [*(line for line, _ in found), *reasons]


def _kernel_line(kernel: Kernel) -> str:
    read, written = _volume(kernel.inputs), _volume(kernel.outputs)
    return f"  {kernel.kind:14} {read:>10} {written:>10}  {kernel.name}"


def _volume(tensors: tuple[KernelTensor, ...]) -> str:
    """Return the bytes of tensors; with a plus, where a size is known at run time only and one row is counted."""
    nbytes = sum(
        math.prod(d for d in t.shape if d > 0)
        * (DTYPES[t.dtype].itemsize if t.dtype in DTYPES else 1)
        for t in tensors
    )
    varies = any(d < 0 for t in tensors for d in t.shape)
    return format_bytes(nbytes) + ("+" if varies else "")
