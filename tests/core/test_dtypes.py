"""The one table of dtypes: true to every library it speaks for, and the only one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save

from longllava_trt.core.dtypes import DTYPES, FLOATS, DType, dtype_of_onnx, onnx_name

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "models", "reference", "plugins_trt", "export", "runtime", "longllava_trt")
WORDS = {
    word
    for dtype in DTYPES.values()
    for word in (dtype.name, dtype.safetensors, dtype.triton, dtype.tensorrt)
    if dtype.name != "bool"
}
TABLE_LENGTH = 2
"""Names of dtypes in one literal that make it a table."""


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_row_is_true_to_numpy_onnx_and_safetensors(dtype: DType) -> None:
    assert dtype.numpy.name == dtype.name
    assert dtype.numpy.itemsize == dtype.itemsize
    assert onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx) == dtype.numpy
    header = save({"x": np.zeros(1, dtype.numpy)})
    assert f'"dtype":"{dtype.safetensors}"'.encode() in header
    assert dtype_of_onnx(dtype.onnx) is dtype
    assert onnx_name(dtype.onnx) == dtype.name


def test_a_row_is_true_to_triton() -> None:
    triton = pytest.importorskip("triton.language", reason="Triton's names stay unproven")
    for dtype in FLOATS:
        assert getattr(triton, dtype.name).name == dtype.triton


def test_a_row_is_true_to_the_plugins() -> None:
    header = (ROOT / "plugins_trt/csrc/form.h").read_text(encoding="utf-8")
    names = header.split("enum class ElementType")[1].split("{")[1].split("}")[0]
    order = [word.strip().removeprefix("k").lower() for word in names.split(",")]
    known = {dtype.name: dtype.plugin for dtype in DTYPES.values() if dtype.plugin is not None}
    assert known == {name: order.index(name) for name in known}


def test_a_number_that_is_not_in_the_table_has_a_name_for_messages() -> None:
    assert dtype_of_onnx(0) is None
    assert onnx_name(0) == "element type 0"


def tables(source: str) -> Iterator[int]:
    """Yield the line of every literal that lists or maps two dtypes or more."""
    tree = ast.parse(source)
    hints = {id(n.slice) for n in ast.walk(tree) if isinstance(n, ast.Subscript)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            listed: list[ast.expr | None] = [*node.keys, *node.values]
        elif isinstance(node, ast.Tuple) and id(node) not in hints:
            listed = list(node.elts)
        else:
            continue
        found = {e.value for e in listed if isinstance(e, ast.Constant) and e.value in WORDS}
        if len(found) >= TABLE_LENGTH:
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('x = {"F32": 4, "BF16": 2}', 1),
        ('x = {1: "float32", 2: "int8"}', 1),
        ('x = ("fp32", "bf16")', 1),
        ('def f(dtype: Literal["T", "float32", "int32"]): ...', 0),
        ('x = ("auto", "float32")', 0),
    ],
)
def test_tables_are_counted(source: str, count: int) -> None:
    assert len(list(tables(source))) == count


def test_there_is_one_table() -> None:
    files = [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_symlink() and path.resolve().is_relative_to(ROOT / folder)
    ]
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in tables(path.read_text(encoding="utf-8"))
    ]
    # the rows of the one table are calls, so that no literal is left
    assert found == []
    assert sum("DType(\n" in p.read_text() or 'DType("' in p.read_text() for p in files) == 1
