"""The float32 matrix product of the CPU operators, against float64 NumPy."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import numba
from numba import types

from longllava_trt.plugins_trt.cpu.matmul_kernel import product

_carray = numba.carray  # type: ignore[attr-defined]
_DTYPES = ["float32", "bfloat16", "half"]
_POISON = np.float32(-12345.5)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values as the kernel takes them; bfloat16 is cut off, not rounded."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16).view(np.int16) if dtype == "half" else values


def _exact(w: np.ndarray) -> np.ndarray:
    """Return stored weights in float64."""
    if w.dtype == np.uint16:
        return (w.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return (w.view(np.float16) if w.dtype == np.int16 else w).astype(np.float64)


def _operands(m: int, n: int, depth: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, rows (any order, with repeats) and stored weights."""
    rng = np.random.default_rng([m, n, depth])
    tokens = max(m - 1, 1)
    x = rng.standard_normal((tokens, depth), dtype=np.float32)
    w = _stored(rng.standard_normal((n, depth), dtype=np.float32), dtype)
    return x, rng.integers(0, tokens, m), w


def _error_and_bound(
    out: np.ndarray, x: np.ndarray, rows: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what was missed and what rounding can explain, whatever the values.

    A term is rounded as it is multiplied (without FMA), once for each later term of its lane's
    block of k, and as lanes and blocks are added: q times at most. Each rounding moves it by 2^-24
    of its size at most, so an output is off by q 2^-24 / (1 - q 2^-24) of the sum of |x| |w|.
    Lanes number four at least, and a block of k is 1024 at most.
    """
    depth = x.shape[1]
    roundings = 1 + -(-min(depth, 1024) // 4) + 4 + -(-depth // 1024)
    unit = roundings * 2.0**-24
    left, right = x[rows].astype(np.float64), _exact(w)
    return np.abs(out - left @ right.T), unit / (1 - unit) * (np.abs(left) @ np.abs(right).T)


def _assert_product(out: np.ndarray, x: np.ndarray, rows: np.ndarray, w: np.ndarray) -> None:
    error, bound = _error_and_bound(out, x, rows, w)
    assert (error <= bound).all()


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("depth", [1, 15, 16, 17, 511, 513, 1800])
def test_product_is_within_rounding_of_float64_and_writes_nothing_else(
    depth: int, dtype: str
) -> None:
    for m in (0, 1, 2, 3, 7, 33):
        for n in (1, 5, 6, 7, 48):
            x, rows, w = _operands(m, n, depth, dtype)
            wide = np.full((m + 2, n + 11), _POISON)
            out = wide[1 : m + 1, 5 : n + 5]
            out[...] = np.nan
            product(x, rows, w, out)
            _assert_product(out, x, rows, w)
            out[...] = _POISON
            assert (wide == _POISON).all(), (m, n)


@pytest.mark.parametrize(
    ("m", "depth"),
    [(30, 4096), (300, 40), (157, 2100)],
    ids=["blocks-of-k", "blocks-of-rows", "both"],
)
def test_product_is_within_rounding_when_x_outgrows_the_cache(m: int, depth: int) -> None:
    x, rows, w = _operands(m, 13, depth, "bfloat16")
    out = np.full((m, 13), np.nan, np.float32)
    product(x, rows, w, out)
    _assert_product(out, x, rows, w)


@pytest.mark.parametrize("left_out", [0, 511, 512], ids=["first", "last-of-vector", "tail"])
def test_bound_is_broken_by_one_term_left_out(left_out: int) -> None:
    x, rows, w = _operands(7, 5, 513, "float32")
    short = x.copy()
    short[:, left_out] = 0
    out = np.empty((7, 5), np.float32)
    product(short, rows, w, out)
    error, bound = _error_and_bound(out, x, rows, w)
    assert (error > bound).mean() > 0.9


@pytest.mark.parametrize("dtype", _DTYPES)
def test_output_has_the_same_bits_whatever_is_computed_with_it(dtype: str) -> None:
    x, rows, w = _operands(61, 18, 2500, dtype)
    whole = np.empty((61, 18), np.float32)
    product(x, rows, w, whole)
    for m in (1, 2, 5, 6, 9, 25):
        part = np.empty((m, 7), np.float32)
        product(x, rows[61 - m :], w[3:10], part)
        np.testing.assert_array_equal(part, whole[61 - m :, 3:10])


def test_half_and_bfloat16_are_widened_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    one = np.ones((1, 1), np.float32)
    for w in (bits, bits.view(np.int16)):
        out = np.empty((1, bits.size), np.float32)
        product(one, np.zeros(1, np.int64), w[:, None], out)
        with np.errstate(invalid="ignore"):  # among all bits are NaNs that NumPy remarks on
            np.testing.assert_array_equal(out[0], _exact(w))


@pytest.mark.parametrize("place", [0, 15, 16, 18])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_reach_their_outputs_and_no_others(
    value: float, place: int
) -> None:
    x, w = np.ones((9, 19), np.float32), np.ones((6, 19), np.float32)
    x[4, place] = value
    w[5, place] = value
    out = np.empty((9, 6), np.float32)
    product(x, np.arange(9), w, out)
    expected = np.full((9, 6), 19, np.float32)
    expected[4], expected[:, 5], expected[4, 5] = value, value, value * value
    np.testing.assert_array_equal(out, expected)


def _before_a_closed_page(array: np.ndarray) -> np.ndarray:
    """Copy an array to the very end of memory that may be read."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    base = np.frombuffer(memory, np.uint8)
    closed = ctypes.c_void_p(base.ctypes.data + size)
    assert ctypes.CDLL(None).mprotect(closed, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    placed: np.ndarray = base[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


@pytest.mark.skipif(
    sys.platform == "win32", reason="reads past the end are unproven without mprotect"
)
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("m", [1, 2, 7, 30])
def test_nothing_is_read_or_written_past_the_arrays(m: int, dtype: str) -> None:
    for depth in (1, 17, 1035):
        x, _, w = _operands(m + 1, 7, depth, dtype)
        x, w, rows = _before_a_closed_page(x), _before_a_closed_page(w), np.arange(m)
        out = _before_a_closed_page(np.zeros((m, 7), np.float32))
        product(x, _before_a_closed_page(rows), w, out)
        _assert_product(out, x, rows, w)


def test_compiled_callback_multiplies_at_bare_addresses() -> None:
    void = types.voidptr

    @numba.cfunc(types.void(void, void, void, void))
    def multiply(x: Any, rows: Any, w: Any, out: Any) -> None:
        product(
            _carray(x, (4, 35), np.float32),
            _carray(rows, (5,), np.int64),
            _carray(w, (6, 35), np.uint16),
            _carray(out, (5, 9), np.float32)[:, 2:8],
        )

    x, rows, w = _operands(5, 6, 35, "bfloat16")
    out = np.full((5, 9), _POISON)
    multiply.ctypes(*(array.ctypes.data for array in (x, rows, w, out)))
    _assert_product(out[:, 2:8], x, rows, w)
    assert (out[:, [0, 1, 8]] == _POISON).all()


def test_threads_share_one_output() -> None:
    x, rows, w = _operands(50, 96, 300, "half")
    out = np.full((50, 96), np.nan, np.float32)
    threads = [
        threading.Thread(target=product, args=(x, rows, w[j : j + 12], out[:, j : j + 12]))
        for j in range(0, 96, 12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _assert_product(out, x, rows, w)
