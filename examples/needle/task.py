"""The needle test's questions, and where its pictures come from.

Everything follows from a stream, a seed and a place in it. Training and evaluation draw from different streams, so no
evaluated picture was ever trained on, whatever the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from examples.needle.pictures import COLOURS, MARKS, SHAPES, Mark, draw_hay, draw_marked
from longllava_trt.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "NOTHING",
    "QUESTIONS",
    "Haystack",
    "Stream",
    "draw_hay_pictures",
    "generator",
    "parse_answer",
]

QUESTIONS = {
    "mark": "Which mark is on the sign?",
    "colour": "What colour is the mark?",
    "shape": "What shape is the mark?",
}
"""Questions that the model was trained on; the test asks the first."""

NOTHING = "none"
"""The answer where no picture is marked."""


class Stream(IntEnum):
    """Purposes of random numbers."""

    TRAINING = 1
    EVALUATION = 2


def generator(stream: Stream, *place: int) -> np.random.Generator:
    """Return the generator of one place of a stream.

    Numbers of a place are not negative, and zeros at its end do not count.
    """
    return np.random.default_rng([int(stream), *place])


@dataclass(frozen=True, slots=True)
class Haystack:
    """One trial: pictures in a row, one of them marked."""

    mark: Mark
    position: int
    """Of the marked picture, counted from 0."""
    pictures: tuple[Image.Image, ...]

    @classmethod
    def draw(
        cls, seed: int, *, hay: Sequence[Image.Image], depth: int, num_depths: int
    ) -> Haystack:
        """Draw the needle of one trial and put it into the hay.

        Args:
            seed: Of the evaluation.
            hay: Pictures without a mark; the one in the needle's place is left out.
            depth: Which depth, counted from 0.
            num_depths: Depths are evenly spread from the first picture to the last.

        Raises:
            InputError: If there is no such depth, or no hay.
        """
        if not hay or not 0 <= depth < num_depths:
            raise InputError(
                f"needle: depth must be below {num_depths} and there must be hay, got depth {depth} of {len(hay)} pictures"
            )
        rng = generator(Stream.EVALUATION, seed, 1, len(hay), depth, num_depths)
        mark = MARKS[rng.integers(len(MARKS))]
        position = round(depth * (len(hay) - 1) / max(1, num_depths - 1))
        pictures = [*hay[:position], draw_marked(rng, mark), *hay[position + 1 :]]
        return cls(mark, position, tuple(pictures))


def draw_hay_pictures(seed: int, count: int) -> list[Image.Image]:
    """Draw an evaluation's pictures without a mark; fewer of them are the first of more."""
    return [draw_hay(generator(Stream.EVALUATION, seed, 0, i)) for i in range(count)]


def parse_answer(text: str) -> Mark | None:
    """Return the mark that an answer names, or None if it does not name exactly one colour and one shape."""
    words = text.lower().replace(".", " ").replace(",", " ").split()
    colours = {word for word in words if word in COLOURS}
    shapes = {word for word in words if word in SHAPES}
    if len(colours) != 1 or len(shapes) != 1:
        return None
    return Mark(colours.pop(), shapes.pop())
