"""Ask a bundle, and the reference too if it is wanted, about haystacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from examples.needle.report import NeedleReport, Trial
from examples.needle.task import QUESTIONS, Haystack, draw_hay_pictures, parse_answer
from longllava_trt.core.logs import Progress, ProgressEvent

if TYPE_CHECKING:
    from PIL import Image

    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["MAX_NEW_TOKENS", "Answerer", "Said", "ask_bundle", "evaluate"]

MAX_NEW_TOKENS = 24
"""More than the longest right answer takes."""


class Said(NamedTuple):
    """An answer."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int


Answerer = Callable[[str, Sequence["Image.Image"]], Said]
"""Answers a question about pictures."""


def ask_bundle(model: LongLLaVA) -> Answerer:
    """Return a bundle's way to answer, greedily."""

    def ask(question: str, pictures: Sequence[Image.Image]) -> Said:
        answer = model.generate(question, pictures, max_new_tokens=MAX_NEW_TOKENS)
        return Said(answer.text, tuple(answer.token_ids), answer.prompt_tokens)

    return ask


def evaluate(
    ask: Answerer,
    *,
    image_counts: Sequence[int],
    num_depths: int,
    seeds: Sequence[int],
    reference: Answerer | None = None,
    progress: Progress | None = None,
) -> NeedleReport:
    """Run every trial: each seed, number of images and depth.

    Args:
        ask: What is tested.
        image_counts: Numbers of images in a haystack.
        num_depths: Places of the needle, evenly spread from the first picture to the last.
        seeds: Each draws haystacks and needles of its own.
        reference: Is asked the same.
        progress: Called after each trial.
    """
    report = progress or (lambda _: None)
    total = len(seeds) * len(image_counts) * num_depths
    report(ProgressEvent("needle", 0, total, "trials"))
    trials: list[Trial] = []
    for seed in seeds:
        for trial in _trials(ask, seed, image_counts, num_depths, reference):
            trials.append(trial)
            report(
                ProgressEvent("needle", len(trials), total, "trials", f"{trial.num_images} images")
            )
    return NeedleReport(tuple(trials))


def _trials(
    ask: Answerer,
    seed: int,
    image_counts: Sequence[int],
    num_depths: int,
    reference: Answerer | None,
) -> Iterator[Trial]:
    hay = draw_hay_pictures(seed, max(image_counts))
    question = QUESTIONS["mark"]
    for num_images in image_counts:
        for depth in range(num_depths):
            stack = Haystack.draw(seed, hay=hay[:num_images], depth=depth, num_depths=num_depths)
            begin = time.perf_counter()
            said = ask(question, stack.pictures)
            seconds = time.perf_counter() - begin
            truth = reference(question, stack.pictures) if reference else None
            yield Trial(
                seed=seed,
                num_images=num_images,
                depth=depth / max(1, num_depths - 1),
                position=stack.position,
                expected=stack.mark.text,
                answer=said.text,
                is_right=parse_answer(said.text) == stack.mark,
                prompt_tokens=said.prompt_tokens,
                seconds=seconds,
                reference_answer=truth.text if truth else None,
                is_same=truth.tokens == said.tokens if truth else None,
            )
