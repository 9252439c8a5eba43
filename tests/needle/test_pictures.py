"""Pictures: the same from the same generator, never twice the same, and marked only where they should be."""

import numpy as np
import pytest
from PIL import Image

from examples.needle.pictures import MARKS, SHAPES, Mark, draw_hay, draw_marked


def pixels(image: Image.Image) -> bytes:
    assert image.mode == "RGB"
    return image.tobytes()


def test_there_are_sixteen_marks_with_different_names() -> None:
    assert len(MARKS) == 16
    assert len({mark.text for mark in MARKS}) == 16


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.text)
def test_one_seed_gives_one_picture_and_two_give_two(mark: Mark) -> None:
    first, again, other = (draw_marked(np.random.default_rng(s), mark) for s in (3, 3, 4))
    assert pixels(first) == pixels(again)
    assert pixels(first) != pixels(other)


def test_hay_follows_its_generator() -> None:
    first, again = (np.random.default_rng(5) for _ in range(2))
    for _ in range(50):
        assert pixels(draw_hay(first)) == pixels(draw_hay(again))


def test_hay_is_never_twice_the_same() -> None:
    rng = np.random.default_rng(6)
    drawn = [pixels(draw_hay(rng)) for _ in range(300)]
    assert len(set(drawn)) == len(drawn)


def test_pictures_vary_in_size_and_stay_small() -> None:
    rng = np.random.default_rng(7)
    sizes = {draw_hay(rng).size for _ in range(100)}
    assert len(sizes) > 50
    assert all(80 <= side <= 112 for size in sizes for side in size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("colour", "channels"), [("red", (0,)), ("green", (1,)), ("blue", (2,)), ("yellow", (0, 1))]
)
def test_a_mark_adds_its_colour_to_a_sign(
    shape: str, colour: str, channels: tuple[int, ...]
) -> None:
    # the same draws up to the mark itself: what differs is the mark
    marked = np.asarray(draw_marked(np.random.default_rng(11), Mark(colour, shape)), dtype=int)
    other = Mark("blue" if colour != "blue" else "red", shape)
    differs = (marked != np.asarray(draw_marked(np.random.default_rng(11), other), int)).any(-1)
    inside = marked[differs]
    assert len(inside) > 30
    strong = inside.mean(0)
    assert set(np.argsort(strong)[-len(channels) :]) == set(channels)
