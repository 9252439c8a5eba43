"""The one writer of safetensors files: read by the format's own package, streamed, and the only one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.safetensors_header import read_header
from longllava_trt.core.safetensors_writer import (
    PYTORCH,
    content_of,
    layout_safetensors,
    write_safetensors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
ARRAYS: dict[str, NDArray[Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.int8)[::2],
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.array(7.0, ml_dtypes.bfloat16),
}
SHAPES = {name: (array.shape, array.dtype.name) for name, array in ARRAYS.items()}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path, digest = tmp_path / "x.safetensors", hashlib.sha256()
    layout = layout_safetensors(path.name, SHAPES, alignment=64)
    write_safetensors(path, layout, map(content_of, ARRAYS.values()), digest=digest, sync=True)
    found = load_file(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert len(layout.header) % 64 == 0
    assert path.stat().st_size == layout.nbytes
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_ranges_are_where_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"w": ((2, 3), "bfloat16"), "v": ((5,), "float32")}
    layout = layout_safetensors(path.name, tensors)
    write_safetensors(path, layout, None)
    for name, source in read_header(path).items():
        place = layout.ranges[name]
        assert (source.offset, source.nbytes) == (place.offset, place.nbytes)
        assert place.end - place.offset == place.nbytes


def test_a_file_of_one_dtype_in_order_is_what_the_package_writes(tmp_path: Path) -> None:
    arrays = {name: np.full((2, i + 1), i, np.float16) for i, name in enumerate("abc")}
    path = tmp_path / "x.safetensors"
    shapes = {name: (array.shape, "float16") for name, array in arrays.items()}
    layout = layout_safetensors(path.name, shapes, metadata=PYTORCH)
    write_safetensors(path, layout, map(content_of, arrays.values()))
    assert path.read_bytes() == save(arrays, metadata=PYTORCH)


def test_a_sparse_file_has_its_length_and_takes_no_disk(tmp_path: Path) -> None:
    path, nbytes = tmp_path / "x.safetensors", 2**26
    layout = layout_safetensors(path.name, {"w": ((nbytes // 4,), "float32")})
    write_safetensors(path, layout, None)
    status = path.stat()
    assert status.st_size == layout.nbytes == len(layout.header) + nbytes
    assert status.st_blocks * 512 < nbytes // 100
    assert not load_file(path)["w"].any()


def test_content_of_another_length_is_noticed(tmp_path: Path) -> None:
    layout = layout_safetensors("x", {"w": ((2,), "float32")})
    with pytest.raises(AssertionError, match="as long as was laid out"):
        write_safetensors(tmp_path / "x", layout, [b"1234"])


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_can_be_written(name: str, tmp_path: Path) -> None:
    path, array = tmp_path / "x.safetensors", np.ones(3, DTYPES[name].numpy)
    write_safetensors(path, layout_safetensors("x", {"w": ((3,), name)}), [content_of(array)])
    np.testing.assert_array_equal(load_file(path)["w"], array, strict=True)


def test_there_is_one_writer() -> None:
    marks = (
        '"data_offsets": [begin',
        "safetensors.torch import save",
        "safetensors.numpy import save",
    )
    folders = ("core", "models", "reference", "plugins_trt", "export", "runtime", "longllava_trt")
    found = {
        str(path.resolve().relative_to(ROOT))
        for folder in (*folders, "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if any(mark in path.read_text(encoding="utf-8") for mark in marks)
    }
    assert found == {"core/safetensors_writer.py"}
