"""Kernels that TensorRT-RTX compiled are kept beside the engines; what does not fit is named and written anew."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longllava_trt.core.publish import atomic_file
from longllava_trt.runtime.backends.trt import runtime_cache
from longllava_trt.runtime.backends.trt.backend import TrtBackend
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
from longllava_trt.runtime.backends.trt.engines import Engines, open_engines
from longllava_trt.runtime.backends.trt.session import TrtSession
from tests.runtime.backends.trt.conftest import FakeCache

NAME = "runtime-cache-trtrtx-1.2.3-nvidia-rtx-1-ada.bin"


@pytest.fixture
def open_again(engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any) -> Callable[[], Engines]:
    return lambda: open_engines(
        engine_bundle, cuda=Cuda(fake_runtime), tensorrt=fake_tensorrt, target="sm80"
    )


@pytest.fixture
def cache_file(engine_bundle: Path, open_again: Callable[[], Engines]) -> Path:
    """The file that a first process left."""
    engines = open_again()
    TrtSession(engines, "vision").warm_up()
    engines.keep_kernels()
    path = engine_bundle / "engines" / "sm80-fake" / NAME
    assert path.is_file()
    return path


def kernels(engines: Engines) -> set[str]:
    assert engines.runtime_cache is not None
    found: set[str] = engines.runtime_cache._cache.kernels
    return found


def test_another_process_takes_over_what_was_compiled(
    cache_file: Path, open_again: Callable[[], Engines], caplog: pytest.LogCaptureFixture
) -> None:
    engines = open_again()
    session = TrtSession(engines, "vision")
    assert len(kernels(engines)) == 3
    session.run({"pixel_values": np.zeros((3, 3), np.float32)})
    assert len(kernels(engines)) == 3
    assert not caplog.records


def test_a_file_that_is_still_right_is_not_written(
    cache_file: Path, open_again: Callable[[], Engines], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = open_again()
    TrtSession(engines, "vision")
    monkeypatch.setattr(runtime_cache, "atomic_file", _never)
    engines.keep_kernels()


def test_it_is_written_when_the_engines_are_no_longer_used(
    engine_bundle: Path, open_again: Callable[[], Engines]
) -> None:
    session = TrtSession(open_again(), "vision")
    session.warm_up()
    del session
    gc.collect()
    assert (engine_bundle / "engines" / "sm80-fake" / NAME).is_file()


def test_a_warm_up_meets_every_size_of_every_stage_and_keeps_it(
    engine_bundle: Path, open_again: Callable[[], Engines]
) -> None:
    backend = TrtBackend(open_again())
    backend.warm_up()
    content = (engine_bundle / "engines" / "sm80-fake" / NAME).read_bytes()
    _, compiled = json.loads(content.partition(b"\n")[2])
    assert len(compiled) == 3 + 3, "images by 4, 2 and 1; positions by 8, 4 and 1"
    assert backend.load_stage("vision") is backend.load_stage("vision")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda b: b[:-3], "it is damaged"),
        (lambda b: b"", "it is damaged"),
        (lambda b: b"[]\n" + b, "it is damaged"),
        (lambda b: b.replace(b"x 1.2.3", b"x 1.2.9", 1), "made with tensorrt-rtx 1.2.9, and this"),
        (lambda b: b.replace(b"1 Ada", b"2 Ada", 1), "made with NVIDIA RTX 2 Ada, and this is NVI"),
        (lambda b: b.replace(b"format 1", b"format 0", 1), "made with format 0, and this is form"),
    ],
)
def test_a_file_that_does_not_fit_is_ignored_with_one_line_and_written_anew(
    spoil: Callable[[bytes], bytes],
    why: str,
    cache_file: Path,
    open_again: Callable[[], Engines],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = cache_file.read_bytes()
    cache_file.write_bytes(spoil(good))
    with caplog.at_level(logging.WARNING):
        engines = open_again()
        session = TrtSession(engines, "vision")
        TrtDecoder(engines)
    assert len(caplog.records) == 1
    assert f"{NAME}: ignored" in caplog.text
    assert why in caplog.text
    session.warm_up()
    engines.keep_kernels()
    assert cache_file.read_bytes() == good


def test_a_file_that_tensorrt_refuses_is_ignored(
    cache_file: Path,
    open_again: Callable[[], Engines],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(FakeCache, "version", "driver 2")
    with caplog.at_level(logging.WARNING):
        engines = open_again()
        TrtSession(engines, "vision")
    assert "TensorRT refuses it, as after an update of the driver" in caplog.text
    assert kernels(engines) == set()


def test_a_folder_that_cannot_be_written_is_said_once_and_left(
    engine_bundle: Path,
    open_again: Callable[[], Engines],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtime_cache, "atomic_file", refuse)
    engines = open_again()
    with caplog.at_level(logging.INFO, logger=runtime_cache.__name__):
        TrtSession(engines, "vision").warm_up()
        engines.keep_kernels()
        TrtDecoder(engines).warm_up()
        engines.keep_kernels()
    said = [record for record in caplog.records if "not kept" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.INFO]


def test_another_gpu_has_a_file_of_its_own(
    cache_file: Path, open_again: Callable[[], Engines], fake_runtime: Any
) -> None:
    fake_runtime.gpu = "NVIDIA RTX 2"
    engines = open_again()
    assert engines.runtime_cache is not None
    assert engines.runtime_cache.path.name == "runtime-cache-trtrtx-1.2.3-nvidia-rtx-2.bin"
    TrtSession(engines, "vision")
    assert kernels(engines) == set()


def test_the_full_tensorrt_has_none(full_engines: Engines, engine_bundle: Path) -> None:
    TrtBackend(full_engines).warm_up()
    assert full_engines.runtime_cache is None
    assert not list(engine_bundle.rglob("runtime-cache*"))


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_file(path, b"one")
    atomic_file(path, b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.bin", b"two")]
    with pytest.raises(OSError, match="missing"):
        atomic_file(tmp_path / "missing" / "a.bin", b"")


def _never(path: Path, content: bytes) -> None:
    raise AssertionError("written")
