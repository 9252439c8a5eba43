"""Medians, spreads, and repeats that do not count."""

from __future__ import annotations

import json

import numpy as np
import pytest

from longllava_trt.bench.figure import Figure, counted, repeat, written
from longllava_trt.bench.stages import timed


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_median_and_spread_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).exponential(size=count)
    figure = Figure("any", "s", tuple(samples.tolist()))
    assert figure.median == pytest.approx(float(np.median(samples)))
    assert (figure.low, figure.high) == (samples.min(), samples.max())


def test_one_slow_sample_moves_the_spread_and_not_the_median() -> None:
    calm, disturbed = Figure("a", "s", (1, 2, 3)), Figure("a", "s", (1, 2, 300))
    assert calm.median == disturbed.median == 2
    assert calm.high < disturbed.high


def test_json_keeps_every_sample_in_its_order() -> None:
    document = json.loads(json.dumps(Figure("a", "ms", (3.0, 1.0, 2.0)).to_json()))
    assert document == {
        "unit": "ms",
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "samples": [3.0, 1.0, 2.0],
    }


def test_a_row_says_median_spread_and_unit() -> None:
    assert Figure("decode", "tokens/s", (5.0, 1234.5, 20.0)).row().split() == (
        "decode 20.0 5.00 1,234 tokens/s".split()
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.00123, "0.00123"), (9.876, "9.88"), (45.67, "45.7"), (9e5, "900,000")],
)
def test_three_digits_count(number: float, text: str) -> None:
    assert written(number) == text


@pytest.mark.parametrize(("amount", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_one_is_singular(amount: int, text: str) -> None:
    assert counted(amount, "images") == text


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 1), (2, 3), (1, 4)])
def test_warm_up_does_not_count(warmup: int, repeats: int) -> None:
    numbers, told = iter(range(100)), list[int]()
    found = repeat(lambda: next(numbers), warmup=warmup, repeats=repeats, on_done=told.append)
    assert found == list(range(warmup, warmup + repeats))
    assert told == list(range(warmup + repeats + 1))


def test_what_comes_before_a_call_is_not_timed() -> None:
    now = [0.0]

    def take(seconds: float) -> None:
        now[0] += seconds

    seconds = timed(lambda: take(2.0), before=lambda: take(50.0), clock=lambda: now[0])
    assert seconds == 2.0
    assert now[0] == 52.0
