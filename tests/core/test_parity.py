"""Agreement, and every way to disagree."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

from longllava_trt.core.parity import (
    FLOAT32_MODEL,
    FLOAT32_OPERATOR,
    ParityReport,
    ParityRow,
    Tolerance,
    compare,
    compare_logits,
    compare_tokens,
    measure,
    worst_of,
)

LOOSE = Tolerance(relative_rms=1.0, max_abs=1.0)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_equal_arrays_pass_with_zero_error() -> None:
    row = compare("x", values(3, 5), values(3, 5), FLOAT32_OPERATOR)
    assert (row.status, row.relative_rms, row.max_abs) == ("passed", 0.0, 0.0)
    assert row.shape == (3, 5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30], ids=["small", "one", "large"])
def test_errors_are_relative(scale: float) -> None:
    want = np.array([3.0, -4.0], dtype=np.float32) * np.float32(scale)
    row = compare("x", want * np.float32(1.25), want, LOOSE)
    assert row.relative_rms == pytest.approx(0.25)
    assert row.max_abs == pytest.approx(0.25)


def test_one_wrong_element_among_many_fails_by_max_alone() -> None:
    want = values(100_000)
    got = want.copy()
    got[77] += 1e-3 * np.abs(want).max()
    row = compare("x", got, want, FLOAT32_MODEL)
    assert row.relative_rms is not None
    assert row.relative_rms < FLOAT32_MODEL.relative_rms
    assert row.status == "failed"


def test_a_bias_everywhere_fails_by_rms_alone() -> None:
    want = values(100)
    want[0] = 1e3
    tolerance = Tolerance(relative_rms=1e-5, max_abs=1e-4)
    row = compare("x", want + np.float32(5e-2), want, tolerance)
    assert row.max_abs is not None
    assert row.max_abs < tolerance.max_abs
    assert row.status == "failed"


@pytest.mark.parametrize(
    ("actual", "expected", "word"),
    [
        (values(1, 3), values(3), "shape"),
        (values(3).astype(np.float64), values(3), "dtype"),
        (values(3).astype(ml_dtypes.bfloat16), values(3).astype(np.float16), "dtype"),
        (np.array([1, np.nan], np.float32), np.ones(2, np.float32), "1 of 2 actual values are NaN"),
        (np.ones(2, np.float32), np.array([1, np.inf], np.float32), "expected values are NaN"),
        (np.full(2, np.nan, np.float32), np.full(2, np.nan, np.float32), "NaN"),
        (np.ones((2, 0), np.float32), np.ones((2, 0), np.float32), "nothing to compare"),
        (np.array([0, 1e-9], np.float32), np.zeros(2, np.float32), "must be all zeros"),
    ],
    ids=["broadcast", "float64", "halves", "nan", "inf", "both-nan", "empty", "not-zero"],
)
def test_what_cannot_be_measured_fails_and_measures_nothing(
    actual: np.ndarray, expected: np.ndarray, word: str
) -> None:
    row = compare("x", actual, expected, LOOSE)
    assert row.status == "failed"
    assert row.problem is not None
    assert word in row.problem
    assert (row.relative_rms, row.max_abs) == (None, None)


def test_zeros_expected_and_got_pass() -> None:
    assert compare("x", np.zeros(3), np.zeros(3), FLOAT32_OPERATOR).status == "passed"


def test_bfloat16_is_compared_in_full_precision() -> None:
    want = values(9).astype(ml_dtypes.bfloat16)
    assert compare("x", want, want, FLOAT32_OPERATOR).status == "passed"


def test_logits_report_agreement_and_margin() -> None:
    want = np.array([[1, 2, 9], [5, 4.5, 0]], dtype=np.float32)
    row = compare_logits("x", want, want, FLOAT32_MODEL)
    assert row.status == "passed"
    assert row.top_one is not None
    assert (row.top_one.rows, row.top_one.agreeing, row.top_one.near_ties) == (2, 2, 0)
    assert row.top_one.smallest_margin == pytest.approx(0.5)


def test_a_flipped_near_tie_fails_though_errors_are_small() -> None:
    want = np.array([[1, 9, 9.0001]], dtype=np.float32)
    got = np.array([[1, 9.0001, 9]], dtype=np.float32)
    assert compare("x", got, want, FLOAT32_MODEL).status == "passed"
    row = compare_logits("x", got, want, FLOAT32_MODEL)
    assert row.status == "failed"
    assert row.top_one is not None
    assert (row.top_one.agreeing, row.top_one.near_ties) == (0, 1)
    assert row.problem is not None
    assert "prefers token 1, expected 2 (margin 1" in row.problem


def test_a_near_tie_that_holds_is_counted() -> None:
    want = np.array([[9, 9.0001], [1, 9]], dtype=np.float32)
    row = compare_logits("x", want, want, FLOAT32_MODEL)
    assert row.status == "passed"
    assert row.top_one is not None
    assert row.top_one.near_ties == 1


def test_logits_of_another_shape_have_no_top_one() -> None:
    assert compare_logits("x", values(2, 3), values(3, 3), FLOAT32_MODEL).top_one is None


@pytest.mark.parametrize(
    ("actual", "word"),
    [
        ((4, 7, 2), None),
        ((4, 6, 2), "1 of 3 tokens identical, then 6 in place of 7 (margin 1.0e+00"),
        ((4, 7), "then got 2 tokens in all"),
        ((4, 7, 2, 2), "then got 4 tokens in all"),
        ((), "0 of 3"),
    ],
    ids=["same", "other", "shorter", "longer", "none"],
)
def test_tokens_must_be_identical(actual: tuple[int, ...], word: str | None) -> None:
    logits = np.tile(np.arange(9, dtype=np.float32), (3, 1))
    row = compare_tokens("x", actual, (4, 7, 2), logits=logits)
    assert row.status == ("failed" if word else "passed")
    assert (word or "3 of 3 tokens identical") in (row.problem or row.note or "")


def test_no_tokens_expected_fails() -> None:
    assert compare_tokens("x", (), (), logits=values(0, 9)).status == "failed"


def test_the_worst_row_is_the_one_that_failed_without_numbers() -> None:
    rows = [
        compare("good", values(3), values(3), LOOSE),
        compare("bad", values(3) * 9, values(3), LOOSE),
        compare("broken", values(2), values(3), LOOSE),
    ]
    worst = worst_of("all", rows)
    assert (worst.name, worst.status, worst.note) == ("all", "failed", "worst of 3: broken")
    assert worst_of("all", rows[:2]).note == "worst of 2: bad"
    assert worst_of("all", []).status == "failed"


def test_a_report_passes_if_something_was_compared_and_nothing_failed() -> None:
    good = ParityReport((compare("good", values(3), values(3), LOOSE),))
    bad = ParityReport((compare("bad", values(2), values(3), LOOSE),))
    skipped = ParityReport((ParityRow.skipped("absent", "no such file"),))
    assert (good + skipped).passed
    assert not (good + bad).passed
    assert not skipped.passed
    assert not ParityReport().passed
    assert (good + bad).failures == bad.rows


def test_lines_are_aligned_and_marked() -> None:
    rows = (
        compare("decoder.logits", values(3), values(3), FLOAT32_MODEL),
        compare("x", values(3) * 2, values(3), FLOAT32_MODEL),
        ParityRow.skipped("absent", "no such file"),
    )
    good, bad, absent = ParityReport(rows).lines()
    assert good.startswith("[✓] decoder.logits  rel rms 0.0e+00 (limit 1e-04), max ")
    assert bad.startswith("[✗] x               rel rms 1.0e+00 (limit 1e-04)")
    assert bad.endswith("error above its limit")
    assert absent == "[-] absent          no such file"


def test_json_holds_every_metric_and_no_stand_in() -> None:
    logits = values(2, 5)
    rows = (
        compare_logits("logits", logits, logits, FLOAT32_MODEL),
        compare("broken", values(2), values(3), LOOSE),
    )
    text = json.dumps(ParityReport(rows).to_json(), allow_nan=False)
    read = json.loads(text)
    assert read["passed"] is False
    assert read["rows"][0]["top_one"]["agreeing"] == 2
    assert read["rows"][1]["relative_rms"] is None
    assert math.isclose(read["rows"][0]["tolerance"]["relative_rms"], 1e-4)


def test_a_figure_is_measured_and_neither_passes_nor_fails() -> None:
    want = np.arange(1, 7, dtype=np.float32)
    row = measure("far", want * 2, want)
    assert (row.status, row.relative_rms, row.max_abs) == ("measured", 1.0, 1.0)
    assert row.line() == "[~] far  rel rms 1.0e+00, max 1.0e+00"
    assert not ParityReport((row,)).passed, "nothing was judged"
    assert ParityReport((row, compare("same", want, want, FLOAT32_MODEL))).passed


@pytest.mark.parametrize("wrong", [np.full(6, np.nan, np.float32), np.ones(5, np.float32)])
def test_a_figure_that_cannot_be_measured_fails(wrong: np.ndarray) -> None:
    assert measure("bad", wrong, np.ones(6, np.float32)).status == "failed"
