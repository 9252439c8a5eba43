"""The one table of formats for experts' weights."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from longllava_trt.core.byte_range import ByteRange
from longllava_trt.core.engine_record import WeightPart
from longllava_trt.core.manifest import WeightRecord
from longllava_trt.core.safetensors_header import TensorSource
from longllava_trt.core.weight_formats import (
    CODEC_NAMES,
    MOE_QUANTS,
    QUANTISED,
    WEIGHT_FORMATS,
    MoeQuant,
)
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import CODECS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "models", "reference", "plugins_trt", "export", "runtime", "longllava_trt")


def test_the_names_are_those_of_the_type() -> None:
    assert get_args(MoeQuant) == MOE_QUANTS
    assert ("none", *QUANTISED) == MOE_QUANTS
    assert set(CODECS) == set(CODEC_NAMES) - {"none"}


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("columns", [128, 160])
def test_a_row_is_true_to_the_codec(name: MoeQuant, columns: int) -> None:
    format_ = WEIGHT_FORMATS[name]
    weights = np.random.default_rng(0).standard_normal((6, columns)).astype(np.float32)
    codes, scales = CODECS[format_.codec].quantise(weights)
    assert (codes.shape, scales.shape) == format_.shapes(6, columns)
    assert codes.dtype.name == format_.dtype
    assert codes.nbytes + scales.nbytes == format_.nbytes(6, columns, itemsize=2)
    moved = np.abs(CODECS[format_.codec].dequantise(codes, scales) - weights)
    group = format_.group or columns
    largest = np.abs(weights[:, :group]).max(axis=1)
    np.testing.assert_allclose(scales.reshape(6, -1)[:, 0] * format_.top_code, largest, rtol=1e-6)
    assert (moved[:, :group] <= 0.51 * scales.reshape(6, -1)[:, :1]).all()


def test_a_format_that_is_none_takes_what_its_dtype_takes() -> None:
    assert WEIGHT_FORMATS["none"].nbytes(3, 5, itemsize=2) == 30
    assert not WEIGHT_FORMATS["none"].is_quantised


def test_there_is_one_table() -> None:
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                words = {"w8a16", "w4a16"}
                if isinstance(node, ast.Dict | ast.Tuple):
                    listed = node.elts if isinstance(node, ast.Tuple) else node.keys
                    words -= {e.value for e in listed if isinstance(e, ast.Constant)}
                    if not words:
                        found.add(str(path.resolve().relative_to(ROOT)))
    assert found == {"core/weight_formats.py"}


def test_a_range_of_bytes_is_one_type() -> None:
    part = WeightPart(name="w", file="f", offset=10, nbytes=8, dtype="float32")
    assert part.within(4, 2) == WeightPart(name="w", file="f", offset=14, nbytes=2, dtype="float32")
    assert part.end == 18
    assert all(issubclass(kind, ByteRange) for kind in (TensorSource, WeightPart, WeightRecord))
