"""The benchmark of quantised experts, small; and its limits, which can be missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.quantise_experts import Figures, expected_error, missed

GOOD = Figures(
    seconds=1.0,
    gb_per_s=1.0,
    peak_rss_bytes=2**30,
    file_bytes=1,
    errors={"gate": 0.1},
    expected={"gate": 0.1},
    worst_step=0.5,
)


@pytest.mark.parametrize(("columns", "mean_square"), [(1, 1.0), (2, 1 + 2 / 3.141592653589793)])
def test_the_expected_error_is_that_of_the_largest_of_some_gaussians(
    columns: int, mean_square: float
) -> None:
    assert expected_error(columns, 127) == pytest.approx((mean_square / 12) ** 0.5 / 127, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": {"gate": 0.11}}, "the error of gate"),
        ({"errors": {"gate": 0.09}}, "the error of gate"),
        ({"peak_rss_bytes": 3 * 2**30}, "memory must stay"),
        ({"worst_step": 0.6}, "half its scale"),
        ({"worst_step": float("nan")}, "half its scale"),
    ],
    ids=["too-large", "too-small", "memory", "step", "nan"],
)
def test_a_missed_limit_is_noticed(change: dict[str, object], message: str) -> None:
    assert missed(GOOD) == []
    (miss,) = missed(replace(GOOD, **change))  # type: ignore[arg-type]
    assert message in miss
