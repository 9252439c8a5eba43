"""Haystacks: where the needle lies, what depends on what, and how answers are read."""

import numpy as np
import pytest

from examples.needle.pictures import MARKS, Mark
from examples.needle.task import Haystack, Stream, draw_hay_pictures, generator, parse_answer
from longllava_trt.core.errors import InputError


def test_streams_and_places_give_different_numbers() -> None:
    places = [(s, *rest) for s in Stream for rest in ((0,), (1,), (0, 1), (1, 1), (0, 0, 1))]
    drawn = {generator(*place).integers(2**60) for place in places}
    assert len(drawn) == len(places)


def test_less_hay_is_the_first_of_more() -> None:
    few, many = draw_hay_pictures(3, 4), draw_hay_pictures(3, 9)
    assert [p.tobytes() for p in few] == [p.tobytes() for p in many[:4]]
    assert draw_hay_pictures(4, 1)[0].tobytes() != few[0].tobytes()


@pytest.mark.parametrize(
    ("num_images", "num_depths", "positions"),
    [(10, 10, list(range(10))), (1000, 3, [0, 500, 999]), (7, 1, [0]), (1, 2, [0, 0])],
)
def test_depths_are_spread_from_the_first_picture_to_the_last(
    num_images: int, num_depths: int, positions: list[int]
) -> None:
    hay = draw_hay_pictures(0, 1) * num_images
    stacks = [Haystack.draw(0, hay=hay, depth=d, num_depths=num_depths) for d in range(num_depths)]
    assert [stack.position for stack in stacks] == pytest.approx(positions, abs=1)


def test_only_the_needle_differs_from_the_hay() -> None:
    hay = draw_hay_pictures(2, 6)
    stack = Haystack.draw(2, hay=hay, depth=1, num_depths=3)
    assert len(stack.pictures) == 6
    assert [i for i in range(6) if stack.pictures[i] is not hay[i]] == [stack.position]


def test_trials_draw_marks_of_their_own() -> None:
    hay = draw_hay_pictures(0, 3)
    marks = {
        Haystack.draw(seed, hay=hay, depth=d, num_depths=10).mark
        for seed in range(8)
        for d in range(10)
    }
    assert len(marks) > len(MARKS) / 2


@pytest.mark.parametrize(("depth", "num_depths", "size"), [(-1, 3, 2), (3, 3, 2), (0, 1, 0)])
def test_there_must_be_hay_and_such_a_depth(depth: int, num_depths: int, size: int) -> None:
    with pytest.raises(InputError, match="needle: depth"):
        Haystack.draw(0, hay=draw_hay_pictures(0, size), depth=depth, num_depths=num_depths)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("red square", Mark("red", "square")),
        ("Yellow cross.", Mark("yellow", "cross")),
        ("It is a cross, a blue one", Mark("blue", "cross")),
        ("none", None),
        ("", None),
        ("red", None),
        ("square", None),
        ("red or blue square", None),
        ("red square or circle", None),
        ("reddish square", None),
    ],
)
def test_answers_are_read(text: str, mark: Mark | None) -> None:
    assert parse_answer(text) == mark


def test_numbers_of_a_place_are_those_of_the_generator_it_names() -> None:
    first, again = (generator(Stream.EVALUATION, 7, 1).random(3) for _ in range(2))
    assert np.array_equal(first, again)
