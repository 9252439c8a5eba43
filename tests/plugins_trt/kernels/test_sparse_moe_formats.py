"""Weight-only formats: bits where they belong, errors no larger than half a step."""

from __future__ import annotations

import numpy as np
import pytest

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import (
    dequantise_int4,
    dequantise_int8,
    pack_int4,
    quantise_int4,
    quantise_int8,
    unpack_int4,
)


def weights(*shape: int) -> np.ndarray:
    # rows of very different sizes: a scale of the wrong row is noticed
    values = np.random.default_rng(7).standard_normal(shape, dtype=np.float32)
    return values * np.float32(2.0) ** np.arange(shape[-2], dtype=np.float32)[:, None]


@pytest.mark.parametrize("columns", [2, 48, 127, 300])
def test_int8_moves_no_weight_by_more_than_half_a_step(columns: int) -> None:
    w = weights(3, 5, columns)
    codes, scales = quantise_int8(w)
    assert codes.dtype == np.int8
    assert (codes.shape, scales.shape) == (w.shape, (3, 5))
    step = np.abs(w).max(-1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(dequantise_int8(codes, scales) - w) <= step * (0.5 + 1e-4)).all()
    assert (np.abs(codes.astype(int)).max(-1) == 127).all()


@pytest.mark.parametrize("columns", [2, 48, 128, 130, 300])
def test_int4_moves_no_weight_by_more_than_half_a_step_of_its_group(columns: int) -> None:
    w = weights(3, 5, columns)
    packed, scales = quantise_int4(w)
    groups = -(-columns // 128)
    assert packed.dtype == np.uint8
    assert packed.shape == (3, 5, columns // 2)
    assert scales.shape == (3, 5, groups)
    wide = dequantise_int4(packed, scales)
    for group in range(groups):
        part = np.s_[..., 128 * group : 128 * (group + 1)]
        step = np.abs(w[part]).max(-1, keepdims=True).astype(np.float64) / 7
        assert (np.abs(wide[part] - w[part]) <= step * (0.5 + 1e-4)).all()


@pytest.mark.parametrize(("quantise", "top"), [(quantise_int8, 127), (quantise_int4, 7)])
def test_representable_weights_come_back_exactly(quantise: object, top: int) -> None:
    dequantise = dequantise_int8 if quantise is quantise_int8 else dequantise_int4
    codes = np.random.default_rng(1).integers(-top, top + 1, (2, 4, 256))
    codes[..., ::128] = top
    w = (codes * 0.25).astype(np.float32)
    stored, scales = quantise(w)  # type: ignore[operator]
    assert np.array_equal(dequantise(stored, scales), w)


def test_int4_keeps_the_even_column_in_the_low_nibble() -> None:
    packed, scales = quantise_int4(np.array([[7, -7, 0, 1]], np.float32))
    assert packed.tolist() == [[0x1F, 0x98]]
    assert scales.tolist() == [[1.0]]
    codes = np.arange(16, dtype=np.uint8)
    assert np.array_equal(unpack_int4(pack_int4(codes)), codes)


@pytest.mark.parametrize("quantise", [quantise_int8, quantise_int4])
def test_zeros_stay_zeros(quantise: object) -> None:
    stored, scales = quantise(np.zeros((2, 128), np.float32))  # type: ignore[operator]
    assert (scales == 1).all()
    assert (stored == (0 if quantise is quantise_int8 else 0x88)).all()


def test_int4_refuses_an_odd_number_of_columns() -> None:
    with pytest.raises(ContractError, match=r"even number of columns, got 3.*int8"):
        quantise_int4(np.ones((2, 3), np.float32))
