"""A replay proves right if it is as near to a run without a graph as another such run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longllava_trt.runtime.backends.graph_proof import first_difference


def runs(*results: dict[str, float]) -> Callable[[bool], dict[str, Any]]:
    """Return what is asked in turn: twice without a graph, then with it."""
    left = iter(zip((False, False, True), results, strict=True))

    def run(is_graph: bool) -> dict[str, Any]:
        want, result = next(left)
        assert is_graph is want
        return {name: np.array([value], np.float32) for name, value in result.items()}

    return run


@pytest.mark.parametrize(
    ("second", "replayed", "wrong"),
    [
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, None),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.1}, "b"),
        ({"a": 1.0, "b": 2.0}, {"a": 0.9, "b": 2.1}, "a"),
        ({"a": 1.2, "b": 2.0}, {"a": 0.9, "b": 2.0}, None),
        ({"a": 1.0, "b": 2.0}, {"a": float("nan"), "b": 2.0}, "a"),
    ],
)
def test_the_first_result_that_differs_is_named(
    second: dict[str, float], replayed: dict[str, float], wrong: str | None
) -> None:
    assert first_difference(runs({"a": 1.0, "b": 2.0}, second, replayed)) == wrong
