"""Answers as they could have been measured, with round numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longllava_trt.bench.end_to_end import AnswerFigures, AnswerRun
from longllava_trt.bench.figure import Figure
from longllava_trt.bench.report import BenchReport
from longllava_trt.bench.settings import BenchSettings
from longllava_trt.bench.stages import StageFigure
from longllava_trt.runtime.model import RunOptions
from longllava_trt.runtime.timings import STAGES

MakeRun = Callable[..., AnswerRun]
MakeReport = Callable[..., BenchReport]


@pytest.fixture
def make_run() -> MakeRun:
    """Return a run of 5 images; keywords change it."""

    def make(**changes: Any) -> AnswerRun:
        seconds = (0.4, 0.2, 0.05, 0.01, 0.5, 0.1)
        usual: dict[str, Any] = {
            "num_images": 5,
            "prompt_tokens": 800,
            "steps": 20,
            "first_token_s": 1.0,
            "timings": dict(zip(STAGES, seconds, strict=True)),
            "peak_bytes": 300_000_000,
            "runtime_s": 0.098,
        }
        return AnswerRun(**usual | changes)

    return make


@pytest.fixture
def make_report(make_run: MakeRun) -> MakeReport:
    """Return a report of some numbers of images, each with its samples of `first_token_s`."""

    def make(
        first_token_s: dict[int, tuple[float, ...]], *, runtime_s: float | None = 0.098
    ) -> BenchReport:
        answers = [
            AnswerFigures(
                tuple(
                    make_run(num_images=count, first_token_s=s, runtime_s=runtime_s)
                    for s in seconds
                )
            )
            for count, seconds in first_token_s.items()
        ]
        call = Figure("vision, 4 images", "ms", (10.0, 30.0, 20.0))
        return BenchReport(
            machine={"processor": "abacus", "cores": 3},
            versions={"python": "3.11"},
            bundle={"name": "tiny", "dtype": "float32", "manifest_sha256": "ab" * 32},
            settings=BenchSettings(),
            options=RunOptions(backend="ort", chunk_size=512, vision_batch=4),
            memory_method="by hand",
            stages=(StageFigure(stage="vision", amount=4, unit="images", context=0, call=call),),
            answers=tuple(answers),
        )

    return make
