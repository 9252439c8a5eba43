"""The convolution's kernels against their plain version and a float64 loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longllava_trt.plugins_trt.launch_plans.mixers import plan_causal_conv

LIMIT = 1e-6
DTYPES = ["float32", "bfloat16", "float16"]
LAYOUTS = ["channels_first", "channels_last", "half_of_wider_rows"]
CASES = [(b, n, f) for b in (1, 3) for n in (1, 2, 3, 63, 64, 65) for f in LAYOUTS]
# the interpreter takes seconds for the others
CASES += [(1, 1000, f) for f in LAYOUTS] + [(3, 1000, "channels_first")]


def conv(tensors: dict[str, Any]) -> tuple[Any, Any]:
    from longllava_trt.plugins_trt.kernels.causal_conv import causal_conv

    return causal_conv(**tensors)


def naive(tensors: dict[str, Any]) -> tuple[Any, Any]:
    from longllava_trt.plugins_trt.kernels.naive import naive_causal_conv

    return naive_causal_conv(**tensors)


def number(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.double().cpu().numpy())


def conv_arrays(batch: int, seq_len: int, d_inner: int = 5, d_conv: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(seq_len)
    shapes = {
        "input": (batch, d_inner, seq_len),
        "weight": (d_inner, 1, d_conv),
        "bias": (d_inner,),
        "past_state": (batch, d_inner, d_conv - 1),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def laid_out(tensors: dict[str, Any], layout: str) -> dict[str, Any]:
    """Return the same numbers, the input's elsewhere in memory."""
    x = tensors["input"]
    if layout == "channels_last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "half_of_wider_rows":
        wide = x.new_full((x.shape[0], x.shape[2], 2 * x.shape[1]), float("nan"))
        wide[:, :, : x.shape[1]] = x.transpose(1, 2)
        x = wide[:, :, : x.shape[1]].transpose(1, 2)
    return {**tensors, "input": x}


def oracle(arrays: dict[str, np.ndarray], *, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Slide a window over state and input in float64; the keyword breaks it on purpose."""
    taps = arrays["weight"].shape[2]
    extended = np.concatenate([arrays["past_state"], arrays["input"]], axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(np.roll(extended, shift, axis=2), taps, 2)
    total = np.einsum("bdtk,dk->bdt", windows, arrays["weight"][:, 0]) + arrays["bias"][:, None]
    return total / (1 + np.exp(-total)), extended[:, :, extended.shape[2] - taps + 1 :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "seq_len", "layout"), CASES, ids=[f"batch{b}-len{n}-{f}" for b, n, f in CASES]
)
def test_conv_equals_its_twin_and_a_float64_loop(
    batch: int,
    seq_len: int,
    dtype: str,
    layout: str,
    on_device: Any,
    as_arrays: Any,
    relative_rms: Any,
) -> None:
    tensors = laid_out(on_device(conv_arrays(batch, seq_len), dtype), layout)
    output, present = conv(tensors)
    twin_output, twin_present = naive(tensors)
    expected, expected_present = oracle(as_arrays(tensors))
    assert output.dtype == present.dtype == tensors["input"].dtype
    np.testing.assert_array_equal(number(present), expected_present)
    np.testing.assert_array_equal(number(present), number(twin_present))
    # the plain version computes in float32, so this is its last rounding alone
    limit = LIMIT if dtype == "float32" else 2 * relative_rms(number(twin_output), expected)
    assert relative_rms(number(output), expected) <= limit
    assert relative_rms(number(output), number(twin_output)) <= limit


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d_inner", [1, 7, 9, 65, 129], ids=lambda n: f"d{n}")
@pytest.mark.parametrize("d_conv", [2, 4], ids=lambda n: f"k{n}")
def test_conv_takes_any_width(
    d_inner: int, d_conv: int, layout: str, on_device: Any, as_arrays: Any, relative_rms: Any
) -> None:
    for seq_len in (1, 2, 5):
        tensors = laid_out(on_device(conv_arrays(2, seq_len, d_inner, d_conv)), layout)
        expected, expected_present = oracle(as_arrays(tensors))
        output, present = conv(tensors)
        assert relative_rms(number(output), expected) <= LIMIT
        np.testing.assert_array_equal(number(present), expected_present)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 33, 67, 68, 69], ids=lambda n: f"cut{n}")
def test_two_calls_with_carried_state_equal_one(
    cut: int, on_device: Any, relative_rms: Any
) -> None:
    tensors = on_device(conv_arrays(2, 70))
    whole, whole_present = conv(tensors)
    first, carried = conv({**tensors, "input": tensors["input"][:, :, :cut].contiguous()})
    rest = tensors["input"][:, :, cut:].contiguous()
    second, present = conv({**tensors, "input": rest, "past_state": carried})
    joined = np.concatenate([number(first), number(second)], axis=2)
    assert relative_rms(joined, number(whole)) <= LIMIT
    np.testing.assert_array_equal(number(present), number(whole_present))


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv_is_right_at_extremes(
    dtype: str, on_device: Any, as_arrays: Any, relative_rms: Any
) -> None:
    arrays = conv_arrays(1, 20)
    arrays["input"] *= 100
    tensors = on_device(arrays, dtype)
    expected, _ = oracle(as_arrays(tensors))
    plain = relative_rms(number(naive(tensors)[0]), expected)
    assert relative_rms(number(conv(tensors)[0]), expected) <= max(2 * plain, LIMIT)


@pytest.mark.parametrize("seq_len", [2, 40], ids=lambda n: f"len{n}")
def test_comparison_fails_when_the_convolution_is_shifted(
    seq_len: int, on_device: Any, as_arrays: Any, relative_rms: Any
) -> None:
    tensors = on_device(conv_arrays(1, seq_len))
    output, _ = conv(tensors)
    arrays = as_arrays(tensors)
    assert relative_rms(number(output), oracle(arrays)[0]) <= LIMIT
    assert relative_rms(number(output), oracle(arrays, shift=1)[0]) > 1000 * LIMIT


def test_inputs_are_never_written(on_device: Any) -> None:
    for seq_len in (2, 9):
        tensors = on_device(conv_arrays(2, seq_len))
        before = {name: number(tensor) for name, tensor in tensors.items()}
        conv(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(number(tensor), before[name])


def test_plan_covers_the_output() -> None:
    launch = plan_causal_conv(2, 4096, 8192, 4)
    assert (launch.kernel, launch.grid) == ("conv_chunk", (1024, 16, 2))
    assert list(launch.integers.values()) == [4096, 8192, 4096 * 8192, 4096, 4096 * 8192, 4096]
    launch = plan_causal_conv(1, 4097, 8200, 4, channels_last=True)
    assert launch.grid == (129, 129, 1)
    assert launch.integers["input_row"] == 8200


def test_a_decode_step_is_another_kernel() -> None:
    assert plan_causal_conv(1, 2, 8192, 4).kernel == "conv_step"
    assert plan_causal_conv(1, 1, 8192, 4).grid == (64, 1, 1)
