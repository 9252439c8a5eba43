"""All levels over one subject, with one decoder session in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from longllava_trt.core.logs import Progress, ProgressEvent
from longllava_trt.core.parity import ParityReport, ParityRow
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.validation import KERNELS, LEVELS
from longllava_trt.validation.generation import CHUNK_SIZE, GenerationCase, generation_rows
from longllava_trt.validation.layers import LayerCase, layer_rows
from longllava_trt.validation.operators import operator_rows
from longllava_trt.validation.parity_case import ParityCase
from longllava_trt.validation.quantisation import expert_rows
from longllava_trt.validation.stages import (
    DecoderRun,
    StageCase,
    kernel_rows,
    plain_rows,
    run_decoder,
    stage_rows,
)

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.ort.kernels import Kernels

__all__ = ["run_levels"]

Part = tuple[str, list[ParityRow]]
"""Name of a step, and its rows."""


class _Cases(NamedTuple):
    """Outputs of the reference, for each level that needs a loaded bundle and is wanted."""

    layer: LayerCase | None
    stage: StageCase | None
    generation: GenerationCase | None


def run_levels(
    subject: ParityCase,
    levels: Sequence[str] = LEVELS,
    *,
    kernels: Sequence[Kernels] = KERNELS,
    seed: int = 0,
    images: Sequence[Path] = (),
    max_new_tokens: int = 64,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare a bundle with the reference that the subject holds; see `validate`."""
    parts = _parts(subject, levels, kernels, seed, images, max_new_tokens)
    per_kernels = len(set(levels) - {"op", "experts"})
    total = ("op" in levels) + ("stage" in levels) + len(kernels) * per_kernels
    total += _has_experts(subject, levels)
    report = progress or (lambda _: None)
    report(ProgressEvent("validate", 0, total, "parts"))
    rows: list[ParityRow] = []
    for done, (what, found) in enumerate(parts, start=1):
        rows += found
        report(ProgressEvent("validate", done, total, "parts", what))
    return ParityReport(tuple(sorted(rows, key=_level)))


def _parts(
    subject: ParityCase,
    levels: Sequence[str],
    kernels: Sequence[Kernels],
    seed: int,
    images: Sequence[Path],
    max_new_tokens: int,
) -> Iterator[Part]:
    if "op" in levels:
        yield "op", list(operator_rows(subject, kernels, seed=seed))
    model = subject.reference
    cases = _Cases(
        layer=LayerCase.of(model, seed=seed) if "layer" in levels else None,
        stage=StageCase.of(model, seed=seed) if "stage" in levels else None,
        generation=GenerationCase.of(
            subject, images=images, seed=seed, max_new_tokens=max_new_tokens
        )
        if "generation" in levels
        else None,
    )
    runs: dict[str, dict[str, DecoderRun]] = {}
    for kind in kernels:
        yield from _kernel_parts(subject, cases, kind, runs)
    if cases.stage is not None:
        rows: list[ParityRow] = []
        if set(KERNELS) <= set(runs):
            rows += kernel_rows(runs["onnx"], runs["fast"], name="onnx==fast")
        if "onnx" in runs:
            rows += plain_rows(cases.stage, subject)
        yield "stage, across kernels", rows
    if _has_experts(subject, levels):
        yield "experts", list(expert_rows(subject, seed=seed, max_new_tokens=max_new_tokens))


def _has_experts(subject: ParityCase, levels: Sequence[str]) -> bool:
    return "experts" in levels and subject.original is not None


def _kernel_parts(
    subject: ParityCase, cases: _Cases, kernels: Kernels, runs: dict[str, dict[str, DecoderRun]]
) -> Iterator[Part]:
    """Do what needs a loaded bundle; the decoder's runs are kept in ``runs``."""
    if cases.layer is not None:
        yield f"layer, {kernels}", list(layer_rows(cases.layer, subject, kernels))
    options = RunOptions(backend="ort", kernels=kernels, chunk_size=CHUNK_SIZE)
    # its sessions load when first used, so after those of the layers are gone
    runtime = LongLLaVA(subject.bundle, subject.manifest, options)
    if cases.stage is not None:
        runs[kernels] = run_decoder(cases.stage, runtime.runner.decoder)
        yield f"stage, {kernels}", list(stage_rows(cases.stage, runtime, runs[kernels]))
    if cases.generation is not None:
        yield f"generation, {kernels}", list(generation_rows(cases.generation, runtime))


def _level(row: ParityRow) -> int:
    return LEVELS.index(row.name.partition(".")[0])
