"""The Numba kernel against a float64 loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from longllava_trt.plugins_trt.cpu import elementwise
from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN

LIMIT = 2e-6

Scan = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def selective_scan(one_operator_model: Any, run_poisoned: Any) -> Scan:
    """The kernel as ONNX Runtime calls it, into outputs full of NaN."""
    model = lower_for_cpu(one_operator_model(SELECTIVE_SCAN))
    return lambda **arrays: run_poisoned(
        model, arrays, {"y": arrays["u"].shape, "state_out": arrays["state"].shape}
    )


@pytest.mark.parametrize("batch", [1, 3], ids=lambda n: f"batch{n}")
@pytest.mark.parametrize("seq_len", [1, 2, 3, 63, 64, 65, 1000], ids=lambda n: f"len{n}")
def test_scan_equals_a_float64_loop(
    selective_scan: Scan,
    batch: int,
    seq_len: int,
    scan_arrays: Any,
    scan_oracle: Any,
    relative_rms: Any,
) -> None:
    arrays = scan_arrays(batch, seq_len)
    y, state = selective_scan(**arrays)
    expected_y, expected_state = scan_oracle(arrays)
    assert relative_rms(y, expected_y) <= LIMIT
    assert relative_rms(state, expected_state) <= LIMIT


@pytest.mark.parametrize("d_inner", [1, 15, 16, 17, 127, 128, 129, 300], ids=lambda n: f"d{n}")
@pytest.mark.parametrize("d_state", [1, 5, 16], ids=lambda n: f"n{n}")
def test_scan_takes_any_width(
    selective_scan: Scan,
    d_inner: int,
    d_state: int,
    scan_arrays: Any,
    scan_oracle: Any,
    relative_rms: Any,
) -> None:
    arrays = scan_arrays(2, 66, d_inner, d_state)
    y, state = selective_scan(**arrays)
    expected_y, expected_state = scan_oracle(arrays)
    assert relative_rms(y, expected_y) <= LIMIT
    assert relative_rms(state, expected_state) <= LIMIT


def split_in_time(arrays: Any, begin: int, end: int, state: np.ndarray) -> dict[str, np.ndarray]:
    cut = {
        name: np.ascontiguousarray(arrays[name][:, begin:end])
        for name in ("u", "dt", "B", "C", "z")
    }
    return {**arrays, **cut, "state": state}


@pytest.mark.parametrize("cut", [1, 2, 31, 63, 64, 65, 128, 129], ids=lambda n: f"cut{n}")
def test_two_calls_with_carried_state_equal_one(
    selective_scan: Scan, cut: int, scan_arrays: Any
) -> None:
    arrays = scan_arrays(2, 130)
    whole_y, whole_state = selective_scan(**arrays)
    first_y, carried = selective_scan(**split_in_time(arrays, 0, cut, arrays["state"]))
    second_y, state = selective_scan(**split_in_time(arrays, cut, 130, carried))
    np.testing.assert_array_equal(np.concatenate([first_y, second_y], axis=1), whole_y)
    np.testing.assert_array_equal(state, whole_state)


def test_comparison_fails_when_the_state_is_reset_between_chunks(
    selective_scan: Scan, scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    arrays = scan_arrays(1, 130)
    y, _ = selective_scan(**arrays)
    assert relative_rms(y, scan_oracle(arrays, reset_at=65)[0]) > 1000 * LIMIT


def test_comparison_fails_when_the_skip_is_dropped(
    selective_scan: Scan, scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    arrays = scan_arrays(1, 65)
    y, _ = selective_scan(**arrays)
    assert relative_rms(y, scan_oracle(arrays, skip=False)[0]) > 1000 * LIMIT


def test_scan_is_finite_at_extremes(
    selective_scan: Scan, extreme_scan_arrays: Any, scan_oracle: Any, relative_rms: Any
) -> None:
    y, state = selective_scan(**extreme_scan_arrays)
    expected_y, expected_state = scan_oracle(extreme_scan_arrays)
    assert relative_rms(y, expected_y) <= LIMIT
    assert relative_rms(state, expected_state) <= LIMIT


def test_inputs_are_never_written(selective_scan: Scan, scan_arrays: Any) -> None:
    arrays = scan_arrays(2, 70)
    for array in arrays.values():
        array.flags.writeable = False
    before = {name: array.copy() for name, array in arrays.items()}
    selective_scan(**arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_bad_inputs_are_refused(selective_scan: Scan, scan_arrays: Any) -> None:
    arrays = scan_arrays(1, 4)
    arrays["C"] = arrays["C"][:, :3]
    with pytest.raises(Exception, match=r"'C' must be \[batch, seq_len, d_state\] float32"):
        selective_scan(**arrays)


@pytest.mark.parametrize(
    ("write", "exact", "ulp"),
    [
        (elementwise.exp_of, np.exp, 1.5),
        (elementwise.power_of_two, lambda x: 2.0 ** -np.abs(x), 1.6),
        (
            elementwise.softplus_of,
            lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
            2.5,
        ),
        (elementwise.silu_of, lambda x: x / (1 + np.exp(-x)), 2.5),
    ],
    ids=["exp", "power_of_two", "softplus", "silu"],
)
def test_elementary_functions_stay_within_ulps(
    write: Callable[..., Any], exact: Callable[[np.ndarray], np.ndarray], ulp: float
) -> None:
    rng = np.random.default_rng(0)
    magnitudes = np.concatenate([rng.uniform(0, 87, 100_000), 10.0 ** rng.uniform(-8, 0, 50_000)])
    x = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
    if write is elementwise.power_of_two:
        x = -np.abs(x)
    function = elementwise.on_numbers("function", write)

    def every(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    out = np.full_like(x, np.nan)
    compiled: Any = numba.njit(error_model="numpy")(every)
    compiled(x, out)
    expected = exact(x.astype(np.float64))
    worst = np.max(np.abs(out - expected) / np.abs(expected)) * 2.0**23
    assert worst <= ulp
