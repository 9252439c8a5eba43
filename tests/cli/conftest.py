"""A tiny checkpoint, its bundle, and the command line run in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from longllava_trt.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Text that a user reads after bad input: one line, no traceback, nothing on stdout."""
        assert "Traceback" not in self.err
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.out == ""
        return self.err.removeprefix("error: ").strip()


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `longllava-trt ARGUMENTS`."""

    def run(*argv: Any) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that nobody changes; `checkpoint` is a copy to spoil."""
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    assert main(["synth", str(folder), "-q"]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Path, traces: Path) -> Path:
    """Its bundle, never changed; `bundle` is a copy to spoil."""
    from tests.export.stored_traces import stored_traces

    folder = tiny.with_name("bundle")
    with stored_traces(traces):
        assert main(["export", str(tiny), str(folder), "-q"]) == 0
    return folder


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures and a text, whose names sort differently as text and as numbers."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (40, 30), "red").save(folder / "frame10.png")
    Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 50).save(folder / "frame2.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of three frames, one a second, each brighter than the one before."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = 64, 48
        for level in (20, 120, 220):
            pixels = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
