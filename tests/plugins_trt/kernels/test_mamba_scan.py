"""MambaScan's kernels against their plain version and a float64 loop."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from longllava_trt.plugins_trt.launch_plans.mamba_scan import MambaScanShape, plan_mamba_scan
from longllava_trt.plugins_trt.spec import MAMBA_SCAN

pytestmark = pytest.mark.usefixtures("bfloat16_is_multiplied")

EPS = 1e-6
LIMIT = 2e-6
DTYPES = ["float32", "bfloat16", "float16"]
LENGTHS = [1, 2, 3, 63, 64, 65]
# the interpreter takes milliseconds a token
CASES = [
    pytest.param(b, n, t, id=f"batch{b}-len{n}-{t}", marks=[pytest.mark.slow] * (b * n > 100))
    for t in DTYPES
    for b, n in [*((b, n) for b in (1, 3) for n in LENGTHS), (1, 1000)]
]


def scan(tensors: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    from longllava_trt.plugins_trt.kernels.mamba_scan import mamba_scan

    return mamba_scan(**tensors, eps=EPS, **options)


def naive(tensors: dict[str, Any]) -> tuple[Any, Any]:
    from longllava_trt.plugins_trt.kernels.naive import naive_mamba_scan

    return naive_mamba_scan(**tensors, eps=EPS)


def number(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.double().cpu().numpy())


def draw(
    batch: int, seq_len: int, d_inner: int = 5, dt_rank: int = 3, d_state: int = 16
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([batch, seq_len, d_inner, dt_rank])
    sizes = {"batch": batch, "seq_len": seq_len, "d_inner": d_inner, "dt_rank": dt_rank}
    sizes |= {"d_state": d_state, "dt_b_c": dt_rank + 2 * d_state, "2*d_inner": 2 * d_inner}
    arrays = {
        value.name: rng.standard_normal([sizes[str(axis)] for axis in value.axes])
        for value in MAMBA_SCAN.inputs
    }
    arrays["A_log"] = np.log(rng.uniform(1, 16, arrays["A_log"].shape))
    arrays["dt_bias"] -= 4
    arrays["dt_proj_weight"] /= np.sqrt(dt_rank)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture
def oracle(mamba_oracle: Any, as_arrays: Any) -> Any:
    """Return a function: y and the state in float64."""
    return lambda tensors, eps=EPS: mamba_oracle(as_arrays(tensors), eps=eps)


@pytest.mark.parametrize(("batch", "seq_len", "dtype"), CASES)
def test_it_equals_its_plain_version_and_a_float64_loop(
    batch: int, seq_len: int, dtype: str, on_device: Any, oracle: Any, relative_rms: Any
) -> None:
    tensors = on_device(draw(batch, seq_len), dtype)
    y, state = scan(tensors, chunks=3 if batch == 1 and seq_len < 1000 else 1)
    plain_y, plain_state = naive(tensors)
    assert y.dtype == plain_y.dtype == tensors["u"].dtype
    expected = oracle(tensors)
    for got, plain, want in zip((y, state), (plain_y, plain_state), expected, strict=True):
        # norms and dt are rounded to T in both, and by chance not always alike
        rounding = relative_rms(number(plain), want)
        limit = LIMIT if dtype == "float32" else 1.5 * rounding
        assert relative_rms(number(got), want) <= limit
        assert relative_rms(number(got), number(plain)) <= limit


@pytest.mark.parametrize(
    ("d_inner", "dt_rank"), [(1, 1), (7, 4), (16, 32), (33, 257), (16, 592), (64, 3)], ids=str
)
def test_it_takes_any_width(
    d_inner: int, dt_rank: int, on_device: Any, oracle: Any, relative_rms: Any
) -> None:
    for seq_len, d_state in ((1, 16), (2, 5), (3, 16), (4, 1)):
        tensors = on_device(draw(2, seq_len, d_inner, dt_rank, d_state))
        for got, want in zip(scan(tensors, chunks=2), oracle(tensors), strict=True):
            assert relative_rms(number(got), want) <= LIMIT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dt_rank", [33, 64])
def test_products_of_several_tiles(
    dt_rank: int, dtype: str, on_device: Any, as_arrays: Any, relative_rms: Any
) -> None:
    from longllava_trt.plugins_trt.kernels.mamba_scan import project_dt

    tensors = on_device(draw(1, 1, 131, dt_rank), dtype)
    weight = tensors["dt_proj_weight"]
    low = tensors["projected"].new_empty((129, dt_rank)).normal_()
    dt = low.new_empty((129, 131))
    shape = MambaScanShape(1, 129, 131, 16, dt_rank)
    _, launch, *_ = plan_mamba_scan(shape, eps=EPS, itemsize=low.element_size())[0]
    assert min(launch.grid[:2]) > 1
    project_dt[launch.grid](low, weight, dt, **launch.integers, **launch.blocks)
    limit = {"float32": LIMIT, "bfloat16": 3e-3, "float16": 4e-4}[dtype]
    assert relative_rms(number(dt), number(low) @ number(weight).T) <= limit


def split_in_time(tensors: Any, begin: int, end: int, state: Any) -> dict[str, Any]:
    cut = {name: tensors[name][:, begin:end].contiguous() for name in ("u", "projected", "xz")}
    return {**tensors, **cut, "state": state}


@pytest.mark.parametrize("cuts", [[1], [2], [9], [18], range(1, 20)], ids=str)
def test_calls_with_carried_state_equal_one(cuts: Any, on_device: Any, relative_rms: Any) -> None:
    tensors = on_device(draw(2, 20))
    whole_y, whole_state = scan(tensors, chunks=3)
    state, parts, places = tensors["state"], [], [0, *cuts, 20]
    for begin, end in pairwise(places):
        y, state = scan(split_in_time(tensors, begin, end, state), chunks=2)
        parts.append(number(y))
    assert relative_rms(np.concatenate(parts, axis=1), number(whole_y)) <= LIMIT
    assert relative_rms(number(state), number(whole_state)) <= LIMIT


def test_a_step_may_write_its_state_in_place(on_device: Any) -> None:
    tensors = on_device(draw(3, 2))
    want_y, want = scan(tensors)
    y, state = scan(tensors, state_out=tensors["state"])
    assert state is tensors["state"]
    assert (number(state) == number(want)).all()
    assert (number(y) == number(want_y)).all()


@pytest.mark.parametrize("seq_len", [1, 4])
def test_each_input_matters(seq_len: int, on_device: Any, oracle: Any, relative_rms: Any) -> None:
    """A fault in any input is seen, so that the comparisons above can see them."""
    tensors = on_device(draw(1, seq_len))
    y, state = scan(tensors, chunks=1)
    for name in tensors:
        changed = {**tensors, name: tensors[name] + 0.1}
        wrong_y, wrong_state = oracle(changed)
        errors = relative_rms(number(y), wrong_y), relative_rms(number(state), wrong_state)
        assert max(errors) > 100 * LIMIT, name
    small = {**tensors, "projected": tensors["projected"] * 1e-3}
    assert relative_rms(number(scan(small)[0]), oracle(small, eps=1e-5)[0]) > 0.01


def test_a_step_is_one_launch() -> None:
    shape = MambaScanShape(1, 1, 8192, 16, 256)
    (step,), spaces = plan_mamba_scan(shape, eps=EPS, itemsize=2)
    assert (step.kernel, step.grid, spaces) == ("mamba_step", (1024, 1, 1), [])


@pytest.mark.parametrize(("batch", "seq_len", "chunks"), [(1, 4096, 4), (1, 100, 1), (8, 4096, 1)])
def test_many_tokens_are_normalised_projected_and_scanned(
    batch: int, seq_len: int, chunks: int
) -> None:
    shape = MambaScanShape(batch, seq_len, 8192, 16, 256)
    launches, spaces = plan_mamba_scan(shape, eps=EPS, itemsize=2)
    scans = ["scan_summaries", "scan_prefix", "scan_outputs"][-1 if chunks == 1 else 0 :]
    assert [x.kernel for x in launches] == ["norm_dt_b_c", "project_dt", *scans]
    assert launches[0].grid == (batch * seq_len, 1, 1)
    assert launches[1].grid == (-(-batch * seq_len // 128), 64, 1)
    assert launches[-1].grid == (256, chunks, batch)
    assert launches[-1].integers["z_row"] == 2 * 8192
    assert {s.name: s.shape for s in spaces if s.dtype == "T"} == {
        "dt_low": (batch * seq_len, 256),
        "B": (batch * seq_len, 16),
        "C": (batch * seq_len, 16),
        "dt": (batch * seq_len, 8192),
    }
