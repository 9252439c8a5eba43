"""Norms and activations against their twins and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longllava_trt.plugins_trt.launch_plans.elementwise import (
    ELEMENTS,
    plan_add_rms_norm,
    plan_norm_dt_b_c,
    plan_quick_gelu,
    plan_swiglu,
)

LIMITS = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 5e-4}
EPS = 1e-6


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed + sum(shape))
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def number(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.double().cpu().numpy())


def normalised(x: np.ndarray, weight: np.ndarray, *, eps: float = EPS) -> np.ndarray:
    """Normalise in float64; the keyword breaks it on purpose."""
    y: np.ndarray = weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("hidden", [1, 64, 100, 1030])
@pytest.mark.parametrize("has_delta", [False, True])
def test_rms_norm_equals_its_twin_and_float64(
    hidden: int, has_delta: bool, dtype: str, on_device: Any, as_arrays: Any, relative_rms: Any
) -> None:
    from longllava_trt.plugins_trt.kernels.naive import naive_rms_norm
    from longllava_trt.plugins_trt.kernels.rms_norm import rms_norm

    arrays = {"x": normal(2, 3, hidden), "weight": 1 + normal(hidden, scale=0.1)}
    if has_delta:
        arrays["delta"] = normal(2, 3, hidden, seed=1)
    tensors = on_device(arrays, dtype)
    before = as_arrays(tensors)
    y, total = rms_norm(**tensors, eps=EPS)
    twin_y, twin_total = naive_rms_norm(**tensors, eps=EPS)
    assert (total is tensors["x"]) is not has_delta
    assert (number(total) == number(twin_total)).all(), "a sum rounded once has one value"
    assert relative_rms(number(y), number(twin_y)) <= LIMITS[dtype]
    assert relative_rms(number(y), normalised(number(total), before["weight"])) <= LIMITS[dtype]
    for name, array in before.items():
        assert (number(tensors[name]) == array).all(), f"{name} was written"


def test_a_small_mean_square_needs_its_eps(on_device: Any, relative_rms: Any) -> None:
    from longllava_trt.plugins_trt.kernels.rms_norm import rms_norm

    arrays = {"x": normal(3, 64, scale=1e-3), "weight": normal(64)}
    y, _ = rms_norm(**on_device(arrays), eps=EPS)
    x, weight = (arrays[name].astype(np.float64) for name in arrays)
    assert relative_rms(number(y), normalised(x, weight)) <= LIMITS["float32"]
    assert relative_rms(number(y), normalised(x, weight, eps=1e-5)) > 0.1


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("rank", "d_state"), [(4, 16), (5, 3), (256, 16), (1, 1)])
def test_norms_of_dt_b_c_equal_their_twin(
    rank: int, d_state: int, dtype: str, on_device: Any, relative_rms: Any
) -> None:
    from longllava_trt.plugins_trt.kernels.naive import naive_rms_norms_of_dt_b_c
    from longllava_trt.plugins_trt.kernels.rms_norm import rms_norms_of_dt_b_c

    arrays = {
        "projected": normal(2, 3, rank + 2 * d_state),
        "dt_weight": normal(rank),
        "b_weight": normal(d_state, seed=1),
        "c_weight": normal(d_state, seed=2),
    }
    tensors = on_device(arrays, dtype)
    found = rms_norms_of_dt_b_c(**tensors, eps=EPS)
    for ours, twin in zip(found, naive_rms_norms_of_dt_b_c(**tensors, eps=EPS), strict=True):
        assert ours.is_contiguous()
        assert ours.shape == twin.shape
        assert relative_rms(number(ours), number(twin)) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("inner", [1, 7, ELEMENTS, ELEMENTS + 1])
def test_swiglu_equals_its_twin_and_float64(
    inner: int, dtype: str, on_device: Any, as_arrays: Any, relative_rms: Any
) -> None:
    from longllava_trt.plugins_trt.kernels.activations import apply_swiglu
    from longllava_trt.plugins_trt.kernels.naive import naive_swiglu

    tensors = on_device({"gate_up": normal(2, 2, 2 * inner, scale=4)}, dtype)
    gate, up = np.split(as_arrays(tensors)["gate_up"], 2, axis=-1)
    y = apply_swiglu(tensors["gate_up"])
    assert relative_rms(number(y), number(naive_swiglu(tensors["gate_up"]))) <= LIMITS[dtype]
    assert relative_rms(number(y), gate / (1 + np.exp(-gate)) * up) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("size", [1, ELEMENTS, ELEMENTS + 3])
def test_quick_gelu_in_place_equals_its_twin(
    size: int, dtype: str, on_device: Any, relative_rms: Any
) -> None:
    from longllava_trt.plugins_trt.kernels.activations import apply_quick_gelu
    from longllava_trt.plugins_trt.kernels.naive import naive_quick_gelu

    x = on_device({"x": normal(3, size, scale=4)}, dtype)["x"]
    want = number(naive_quick_gelu(x))
    assert apply_quick_gelu(x) is x
    assert relative_rms(number(x), want) <= LIMITS[dtype]


def test_activations_of_large_values_do_not_overflow(on_device: Any) -> None:
    from longllava_trt.plugins_trt.kernels.activations import apply_quick_gelu, apply_swiglu

    x = on_device({"x": np.array([[-1e4, 1e4, 1.0, 1.0]], np.float32)})["x"]
    assert number(apply_swiglu(x)).tolist() == [[-0.0, 1e4]]
    assert number(apply_quick_gelu(x))[0, :2].tolist() == [-0.0, 1e4]


def test_launches_cover_every_element_once() -> None:
    assert plan_add_rms_norm(5, 4096, eps=EPS, has_delta=True).grid == (5, 1, 1)
    assert plan_add_rms_norm(5, 4097, eps=EPS, has_delta=True).blocks["block"] == 8192
    assert plan_norm_dt_b_c(70_000, 256, 16, eps=EPS).grid == (70_000, 1, 1)
    assert plan_swiglu(70_000, 14_336).grid == (70_000 * 14, 1, 1)
    assert plan_quick_gelu(4 * ELEMENTS + 1).grid == (5, 1, 1)


@pytest.mark.parametrize(("hidden", "warps"), [(1, 1), (64, 1), (4096, 8), (100_000, 16)])
def test_wide_rows_get_more_warps(hidden: int, warps: int) -> None:
    assert plan_add_rms_norm(1, hidden, eps=EPS, has_delta=False).num_warps == warps
