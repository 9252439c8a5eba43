"""Whole answers about growing numbers of images, as in `longllava-trt run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from longllava_trt.bench.figure import Figure, counted, repeat
from longllava_trt.bench.memory import peak_resident_bytes, reset_peak
from longllava_trt.bench.pictures import in_turns
from longllava_trt.bench.settings import BenchSettings
from longllava_trt.bench.watch import RuntimeWatch
from longllava_trt.core.errors import InputError
from longllava_trt.core.logs import Progress, ProgressEvent
from longllava_trt.runtime.sampling import SamplingParams
from longllava_trt.runtime.sequence import MultimodalSequence

if TYPE_CHECKING:
    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["AnswerFigures", "AnswerRun", "check_fits", "measure_answers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRun:
    """One measured answer."""

    num_images: int
    prompt_tokens: int
    """Positions of the prompt, images included."""
    steps: int
    """Tokens after the first."""
    first_token_s: float
    """Seconds from the call to the first token's logits."""
    timings: Mapping[str, float]
    """Seconds by stage, as in `GenerationOutput`."""
    peak_bytes: int
    """Peak of resident memory, in bytes."""
    runtime_s: float | None
    """ONNX Runtime's own part of ``timings["decode"]``; None for other backends."""

    def image_ms(self, seconds: float) -> float | None:
        """Return seconds for each image; None if there is no image."""
        return 1e3 * seconds / self.num_images if self.num_images else None

    @property
    def overhead_us(self) -> float | None:
        """Time of a decoded token outside ONNX Runtime: sampling, text, binding of states."""
        if self.runtime_s is None:
            return None
        return 1e6 * (self.timings["decode"] - self.runtime_s) / self.steps


class _Quantity(NamedTuple):
    """A quantity that all runs of one kind have, or none of them."""

    label: str
    unit: str
    of: Callable[[AnswerRun], float | None]


_QUANTITIES = {
    "first_token_s": _Quantity("first token", "s", lambda run: run.first_token_s),
    "prefill_tokens_per_s": _Quantity(
        "prefill", "tokens/s", lambda run: run.prompt_tokens / run.timings["prefill"]
    ),
    "decode_tokens_per_s": _Quantity(
        "decode", "tokens/s", lambda run: run.steps / run.timings["decode"]
    ),
    "decode_overhead_us_per_token": _Quantity(
        "decode loop's own time", "µs/token", lambda run: run.overhead_us
    ),
    "decode_image_ms_per_image": _Quantity(
        "image decoding (1)", "ms/image", lambda run: run.image_ms(run.timings["decode_image"])
    ),
    "vision_ms_per_image": _Quantity(
        "vision", "ms/image", lambda run: run.image_ms(run.timings["vision"])
    ),
    "projector_ms_per_image": _Quantity(
        "projector", "ms/image", lambda run: run.image_ms(run.timings["projector"])
    ),
    "first_token_ms_per_image": _Quantity(
        "first token, by images", "ms/image", lambda run: run.image_ms(run.first_token_s)
    ),
    "peak_resident_mb": _Quantity("peak resident memory", "MB", lambda run: run.peak_bytes / 1e6),
}
"""Quantities by their names in the JSON document."""


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """All runs with one number of images."""

    runs: tuple[AnswerRun, ...]

    @property
    def num_images(self) -> int:
        """Images shown in each run."""
        return self.runs[0].num_images

    @property
    def prompt_tokens(self) -> int:
        """Positions of the prompt, the same in each run."""
        return self.runs[0].prompt_tokens

    @property
    def figures(self) -> dict[str, Figure]:
        """All measured quantities, by name."""
        found = {}
        for name, quantity in _QUANTITIES.items():
            samples = [value for run in self.runs if (value := quantity.of(run)) is not None]
            if samples:
                found[name] = Figure(quantity.label, quantity.unit, tuple(samples))
        return found

    @property
    def token_ms(self) -> Figure:
        """Time of each token after the first."""
        samples = (1e3 * run.timings["decode"] / run.steps for run in self.runs)
        return Figure("each later token", "ms", tuple(samples))

    def seconds(self, stage: str) -> Figure:
        """Return the seconds of a stage of `GenerationOutput.timings`, in all."""
        return Figure(stage, "s", tuple(run.timings[stage] for run in self.runs))


def check_fits(model: LongLLaVA, settings: BenchSettings, pictures: tuple[Path, ...]) -> None:
    """Raise an error for images that do not fit, before any work.

    Raises:
        InputError: If the prompt is empty, or the most images do not fit.
    """
    runner = model.runner
    most, limit = max(settings.image_counts), runner.capacity
    # before a list is made of them
    least = most * runner.cutter.patches.num_rows if most else 0
    if least > limit:
        raise InputError(
            f"bench: {most} images take {least} positions and more, the cache has {limit}; "
            f"show fewer images or {runner.more_capacity}"
        )
    turn = runner.message(settings.prompt, images=in_turns(pictures, most))
    MultimodalSequence(runner, checkpoint_every=1, keep_checkpoints=False).check_fits(
        turn,
        tail=runner.chat.tail,
        spare=settings.new_tokens,
        where="bench: the prompt takes",
    )


def measure_answers(
    model: LongLLaVA,
    settings: BenchSettings,
    pictures: tuple[Path, ...],
    *,
    watch: RuntimeWatch | None,
    progress: Progress | None,
) -> list[AnswerFigures]:
    """Answer about each number of images, fewest first.

    Args:
        model: The bundle.
        settings: What is measured.
        pictures: Shown in turns.
        watch: Watches the model's sessions, if it has any.
        progress: Called after each answer.
    """
    found = []
    for count in settings.ascending:
        images = in_turns(pictures, count)
        runs = repeat(
            partial(_answer, model, settings, images, watch),
            warmup=settings.warmup,
            repeats=settings.repeats,
            on_done=partial(_tell, progress, settings, count),
        )
        found.append(AnswerFigures(tuple(runs)))
    return found


def _tell(progress: Progress | None, settings: BenchSettings, count: int, done: int) -> None:
    if progress is not None:
        total = settings.warmup + settings.repeats
        progress(ProgressEvent(f"bench {counted(count, 'images')}", done, total, "runs"))


def _answer(
    model: LongLLaVA, settings: BenchSettings, images: list[Path], watch: RuntimeWatch | None
) -> AnswerRun:
    sampling = SamplingParams(
        max_new_tokens=settings.new_tokens, min_new_tokens=settings.new_tokens
    )
    if watch is not None:
        watch.restart()
    reset_peak()
    answer = model.generate(
        settings.prompt, images, sampling=sampling, progress=watch.restart if watch else None
    )
    peak = peak_resident_bytes()
    return AnswerRun(
        num_images=answer.num_images,
        prompt_tokens=answer.prompt_tokens,
        steps=len(answer.token_ids) - 1,
        first_token_s=answer.prefill_s,
        timings=answer.timings,
        peak_bytes=peak,
        runtime_s=watch.seconds if watch else None,
    )
