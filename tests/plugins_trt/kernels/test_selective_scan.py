"""The scan's kernels against their plain version and a float64 loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from longllava_trt.plugins_trt.launch_plans.mixers import plan_selective_scan, scan_chunks

LIMIT = 2e-6
DTYPES = ["float32", "bfloat16", "float16"]
LENGTHS = [1, 2, 3, 63, 64, 65]
# the interpreter takes milliseconds a token
LONG = [(1, 1000, t) for t in DTYPES]
CASES = [
    pytest.param(b, n, t, id=f"batch{b}-len{n}-{t}", marks=[pytest.mark.slow] * (n > 100))
    for b, n, t in [*((b, n, t) for t in DTYPES for b in (1, 3) for n in LENGTHS), *LONG]
]
A100 = 108


def scan(tensors: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    from longllava_trt.plugins_trt.kernels.selective_scan import selective_scan

    return selective_scan(**tensors, **options)


def naive(tensors: dict[str, Any]) -> tuple[Any, Any]:
    from longllava_trt.plugins_trt.kernels.naive import naive_selective_scan

    return naive_selective_scan(**tensors)


def number(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.double().cpu().numpy())


@pytest.fixture
def scan_error(scan_oracle: Any, relative_rms: Any, as_arrays: Any) -> Any:
    """Return a function: the larger error of y and the state, against a float64 loop."""

    def error(tensors: dict[str, Any], results: tuple[Any, Any], **broken: Any) -> float:
        expected = scan_oracle(as_arrays(tensors), **broken)
        pairs = zip(results, expected, strict=True)
        return max(float(relative_rms(number(a), e)) for a, e in pairs)

    return error


@pytest.mark.parametrize(("batch", "seq_len", "dtype"), CASES)
def test_scan_equals_its_twin_and_a_float64_loop(
    batch: int,
    seq_len: int,
    dtype: str,
    scan_arrays: Any,
    scan_oracle: Any,
    relative_rms: Any,
    on_device: Any,
    as_arrays: Any,
) -> None:
    tensors = on_device(scan_arrays(batch, seq_len, 5), dtype)
    # several chunks, but not several thousand interpreted steps more
    y, state = scan(tensors, chunks=3 if batch == 1 and seq_len < 1000 else 1)
    twin_y, twin_state = naive(tensors)
    expected_y, expected_state = scan_oracle(as_arrays(tensors))
    assert y.dtype == twin_y.dtype == tensors["u"].dtype
    assert relative_rms(number(state), expected_state) <= LIMIT
    assert relative_rms(number(state), number(twin_state)) <= LIMIT
    # the plain version computes in float32, so this is its last rounding alone
    limit = LIMIT if dtype == "float32" else 2 * relative_rms(number(twin_y), expected_y)
    assert relative_rms(number(y), expected_y) <= limit
    assert relative_rms(number(y), number(twin_y)) <= limit


@pytest.mark.parametrize("d_inner", [1, 7, 31, 33, 70], ids=lambda n: f"d{n}")
@pytest.mark.parametrize("d_state", [1, 5, 16], ids=lambda n: f"n{n}")
def test_scan_takes_any_width(
    d_inner: int, d_state: int, scan_arrays: Any, on_device: Any, scan_error: Any
) -> None:
    for seq_len in (2, 4):
        tensors = on_device(scan_arrays(2, seq_len, d_inner, d_state))
        assert scan_error(tensors, scan(tensors, chunks=2)) <= LIMIT


@pytest.mark.parametrize("chunks", [1, 2, 5, 17], ids=lambda n: f"chunks{n}")
def test_any_number_of_chunks_gives_the_same(
    chunks: int, scan_arrays: Any, on_device: Any, scan_error: Any
) -> None:
    tensors = on_device(scan_arrays(2, 17, 5))
    assert scan_error(tensors, scan(tensors, chunks=chunks)) <= LIMIT


def test_the_planned_number_of_chunks_is_right(
    scan_arrays: Any, on_device: Any, scan_error: Any
) -> None:
    assert scan_chunks(1, 130, 5) == (2, 65)
    tensors = on_device(scan_arrays(1, 130, 5))
    assert scan_error(tensors, scan(tensors)) <= LIMIT


def split_in_time(tensors: Any, begin: int, end: int, state: Any) -> dict[str, Any]:
    cut = {name: tensors[name][:, begin:end].contiguous() for name in ("u", "dt", "B", "C", "z")}
    return {**tensors, **cut, "state": state}


@pytest.mark.parametrize("cut", [1, 2, 9, 18, 19], ids=lambda n: f"cut{n}")
def test_two_calls_with_carried_state_equal_one(
    cut: int, scan_arrays: Any, on_device: Any, relative_rms: Any
) -> None:
    tensors = on_device(scan_arrays(2, 20, 5))
    whole_y, whole_state = scan(tensors, chunks=3)
    first_y, carried = scan(split_in_time(tensors, 0, cut, tensors["state"]), chunks=2)
    second_y, state = scan(split_in_time(tensors, cut, 20, carried), chunks=2)
    joined = np.concatenate([number(first_y), number(second_y)], axis=1)
    assert relative_rms(joined, number(whole_y)) <= LIMIT
    assert relative_rms(number(state), number(whole_state)) <= LIMIT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [1, 5], ids=lambda n: f"chunks{n}")
def test_scan_is_right_at_extremes(
    dtype: str,
    chunks: int,
    extreme_scan_arrays: Any,
    on_device: Any,
    as_arrays: Any,
    scan_oracle: Any,
    relative_rms: Any,
) -> None:
    arrays = {
        name: a[:, :12] if name in {"u", "dt", "B", "C", "z"} else a
        for name, a in extreme_scan_arrays.items()
    }
    tensors = on_device(arrays, dtype)
    y, state = scan(tensors, chunks=chunks)
    expected_y, expected_state = scan_oracle(as_arrays(tensors))
    assert relative_rms(number(state), expected_state) <= LIMIT
    plain = relative_rms(number(naive(tensors)[0]), expected_y)
    assert relative_rms(number(y), expected_y) <= max(2 * plain, LIMIT)


def test_small_steps_keep_their_relative_accuracy(
    scan_arrays: Any, on_device: Any, scan_error: Any
) -> None:
    """1 + exp(-16) is 1 in half of float32's digits: softplus must not lose delta there."""
    arrays = scan_arrays(1, 6, 5)
    arrays["dt"] -= np.float32(12)
    arrays["state"][:], arrays["D"][:] = 0, 0
    tensors = on_device(arrays)
    assert scan_error(tensors, scan(tensors, chunks=2)) <= LIMIT


@pytest.mark.parametrize(
    "broken", [{"skip": False}, {"reset_at": 10}], ids=["skip-dropped", "state-reset"]
)
@pytest.mark.parametrize("chunks", [1, 2], ids=lambda n: f"chunks{n}")
def test_comparison_fails_when_the_oracle_is_broken(
    broken: Any, chunks: int, scan_arrays: Any, on_device: Any, scan_error: Any
) -> None:
    tensors = on_device(scan_arrays(1, 20, 5))
    results = scan(tensors, chunks=chunks)
    assert scan_error(tensors, results) <= LIMIT
    assert scan_error(tensors, results, **broken) > 1000 * LIMIT


def test_inputs_are_never_written(scan_arrays: Any, on_device: Any) -> None:
    tensors = on_device(scan_arrays(2, 9, 5))
    before = {name: number(tensor) for name, tensor in tensors.items()}
    scan(tensors, chunks=2)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(number(tensor), before[name])


@pytest.mark.parametrize("seq_len", [3, 64, 128, 1000, 4096, 144_000], ids=lambda n: f"len{n}")
@pytest.mark.parametrize("d_inner", [5, 128, 8192], ids=lambda n: f"d{n}")
def test_chunks_cover_time_exactly(seq_len: int, d_inner: int) -> None:
    count, length = scan_chunks(1, seq_len, d_inner)
    assert (count - 1) * length < seq_len <= count * length
    assert count == 1 or length >= 64


@pytest.mark.parametrize("seq_len", [4096, 144_000], ids=lambda n: f"len{n}")
def test_one_sequence_fills_an_a100(seq_len: int) -> None:
    launches, spaces = plan_selective_scan(1, seq_len, 8192, 16)
    assert [launch.kernel for launch in launches] == [
        "scan_summaries",
        "scan_prefix",
        "scan_outputs",
    ]
    for launch in (launches[0], launches[2]):
        assert math.prod(launch.grid) >= 7 * A100
    assert sum(4 * math.prod(space.shape) for space in spaces) == 1632 * 1024


def test_a_decode_step_is_one_kernel_that_needs_nothing() -> None:
    for seq_len in (1, 2):
        (launch,), spaces = plan_selective_scan(1, seq_len, 8192, 16)
        assert launch.kernel == "scan_step"
        assert launch.grid == (1024, 1, 1)
        assert spaces == []


def test_a_large_batch_is_not_cut() -> None:
    launches, spaces = plan_selective_scan(4, 4096, 8192, 16)
    assert [launch.kernel for launch in launches] == ["scan_outputs"]
    assert spaces == []
