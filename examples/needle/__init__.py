"""A visual needle in a haystack: does a model find the one marked picture among a thousand?

pictures.py   marks, and pictures with and without them
task.py       questions, haystacks and the streams they are drawn from
evaluate.py   every number of images at every depth
oracle.py     the same questions for the reference
report.py     the result; heat_map.py draws it
train.py      trains the checkpoint that passes, with curriculum.py, pools.py and the rest
checkpoint    is that one; random weights cannot pass
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples.needle.report import NeedleReport, Trial
from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.core.logs import Progress

if TYPE_CHECKING:
    from longllava_trt.runtime.model import RunOptions

__all__ = ["IMAGE_COUNTS", "NUM_DEPTHS", "NeedleReport", "Trial", "run_needle"]

IMAGE_COUNTS = (10, 100, 300, 1000)
NUM_DEPTHS = 10


def run_needle(
    bundle: Path,
    *,
    image_counts: Sequence[int] = IMAGE_COUNTS,
    num_depths: int = NUM_DEPTHS,
    seeds: Sequence[int] = (0,),
    reference: Path | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> NeedleReport:
    """Test a bundle.

    Args:
        bundle: Folder made by `longllava-trt export`.
        image_counts: Numbers of images in a haystack.
        num_depths: Places of the needle, evenly spread from the first picture to the last.
        seeds: Each draws haystacks and needles of its own. Not negative.
        reference: Checkpoint the bundle was exported from; it is asked the same in PyTorch.
        options: How the bundle is run.
        progress: Called after each trial.

    Raises:
        InputError: If a number is out of range, or a prompt does not fit.
        MissingDependencyError: If there is a reference and PyTorch is not installed.
    """
    if not image_counts or not seeds or min(image_counts) < 1 or num_depths < 1 or min(seeds) < 0:
        raise InputError(
            "needle: needs image counts and depths of at least 1 and seeds of at least 0, got images "
            f"{list(image_counts)}, {num_depths} depths, seeds {list(seeds)}"
        )
    from examples.needle.evaluate import ask_bundle, evaluate
    from examples.needle.oracle import ask_reference
    from longllava_trt.runtime.model import LongLLaVA

    model = LongLLaVA.from_bundle(bundle, options)
    oracle = None
    if reference is not None:
        try:
            oracle = ask_reference(reference)
        except ImportError as err:
            raise MissingDependencyError(
                f"needle: the reference needs '{err.name}', which is not installed; install longllava-trt[export]"
            ) from err
    return evaluate(
        ask_bundle(model),
        image_counts=image_counts,
        num_depths=num_depths,
        seeds=seeds,
        reference=oracle,
        progress=progress,
    )
