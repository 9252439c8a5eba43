"""Speed of a bundle on this machine: every stage alone, and answers about growing sets of images.

settings.py     numbers of images, repeats, the question
end_to_end.py   answers: first token, rates, time an image, memory
stages.py       each stage alone
watch.py        ONNX Runtime's own time, so that the decode loop's can be told from it
memory.py       the most memory that the process held
pictures.py     images for a benchmark that is given none
environment.py  machine, versions and bundle, for readers of the figures elsewhere
figure.py       a median, its spread and every sample
report.py       all of it, as a table and as plain data; chart.py draws it
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from longllava_trt.bench.end_to_end import check_fits, measure_answers
from longllava_trt.bench.environment import describe_bundle, describe_machine, describe_versions
from longllava_trt.bench.memory import memory_method
from longllava_trt.bench.pictures import shown_pictures
from longllava_trt.bench.report import BenchReport
from longllava_trt.bench.settings import BenchSettings
from longllava_trt.bench.stages import measure_stages
from longllava_trt.bench.watch import RuntimeWatch
from longllava_trt.core.logs import Progress
from longllava_trt.runtime.model import LongLLaVA, RunOptions

__all__ = ["BenchReport", "BenchSettings", "run_bench"]

logger = logging.getLogger(__name__)


def run_bench(
    bundle: Path,
    *,
    settings: BenchSettings | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure a bundle.

    Args:
        bundle: Folder made by `longllava-trt export`.
        settings: What is measured.
        options: How the bundle is run.
        progress: Called after each measurement.

    Raises:
        ManifestError: If the folder is no bundle.
        InputError: If an image cannot be used, or the most images do not fit; before anything is
            measured.
    """
    settings, options = settings or BenchSettings(), options or RunOptions()
    model = LongLLaVA.from_bundle(bundle, options)
    if model.runner.form.cutter is None and any(settings.image_counts):
        logger.warning("bench: this model takes text alone, and is measured without images")
        settings = replace(settings, image_counts=(0,))
    watch = RuntimeWatch.over(model) if model.runner.backend.name == "ort" else None
    with tempfile.TemporaryDirectory(prefix="longllava-bench-") as scratch:
        pictures = shown_pictures(settings, Path(scratch))
        check_fits(model, settings, pictures)
        # answers first: what stages leave in memory would count as theirs
        answers = measure_answers(model, settings, pictures, watch=watch, progress=progress)
        stages = measure_stages(
            model, warmup=settings.warmup, repeats=settings.repeats, progress=progress
        )
    return BenchReport(
        machine=describe_machine(),
        versions=describe_versions(),
        bundle=describe_bundle(model),
        settings=settings,
        options=model.runner.used_options,
        memory_method=memory_method(),
        stages=tuple(stages),
        answers=tuple(answers),
    )
