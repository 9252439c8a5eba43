"""The journey of an image in docs/architecture.md: the files that hold an image on its way to the first kernel are those listed."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longllava_trt.cli import main
from longllava_trt.runtime.inputs.encoder import DecodedImage
from longllava_trt.runtime.inputs.images import ImageGroup, ImageInput, Message

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"longllava_trt", "core", "models", "plugins_trt", "runtime"}
BEFORE = {"longllava_trt/cli/__init__.py"}
"""Holds the words of the command line before any verb does."""
LAST = "runtime/backends/ort/session.py"
MOST_FILES = 14


def listed_files() -> list[str]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("### The journey of an image\n")[2].partition("\n#")[0]
    return re.findall(r"^\| \d+ \| `([\w/.]+)` \|", section, flags=re.MULTILINE)


class Tracer:
    """Notes each file in which a function holds the image, from the verb to the vision stage's first call."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.files: set[str] = set()
        self.is_over = False
        self._names: dict[str, str] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Look at a call, from both ends, or at a return."""
        if self.is_over or event not in {"call", "return"}:
            return
        if self._name(frame.f_code.co_filename) == LAST and frame.f_code.co_name == "run":
            self.is_over = True
            self.files.add(LAST)
            return
        for held in (frame, frame.f_back):
            name = self._name(held.f_code.co_filename) if held else ""
            if held and name.partition("/")[0] in PLACES and name not in BEFORE | self.files:
                values = [*held.f_locals.values(), arg]
                if any(self._is_image(value) for value in values):
                    self.files.add(name)

    def _name(self, file: str) -> str:
        if file not in self._names:
            path = Path(file).resolve()
            self._names[file] = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
        return self._names[file]

    def _is_image(self, value: object, depth: int = 0) -> bool:
        if isinstance(value, ImageInput | ImageGroup | Message | DecodedImage | Image.Image):
            return True
        if isinstance(value, str | Path):
            return str(value) == str(self.image)
        if isinstance(value, list | tuple) and depth < 2:
            return any(self._is_image(item, depth + 1) for item in value)
        return isinstance(value, np.ndarray) and value.ndim == 4 and value.shape[1] == 3


@pytest.fixture
def tracer(tmp_path: Path) -> Iterator[Tracer]:
    image = tmp_path / "a.png"
    Image.new("RGB", (61, 40), "red").save(image)
    before = sys.getprofile()
    tracer = Tracer(image)
    sys.setprofile(tracer)
    threading.setprofile(tracer)
    yield tracer
    threading.setprofile(None)
    sys.setprofile(before)


def test_the_files_on_the_way_are_those_of_the_document(
    tracer: Tracer, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", str(tiny_bundle), "--image", str(tracer.image), "-p", "What is it?", "-q"]
    assert main([*argv, "--max-new-tokens", "1", "--kernels", "onnx"]) == 0, capsys.readouterr()
    assert tracer.is_over
    assert tracer.files == set(listed_files())


def test_the_way_is_short() -> None:
    assert 10 <= len(listed_files()) <= MOST_FILES
