"""The library's build: cached by content, repeatable to the bit, and clear about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import (
    ConfigError,
    InputError,
    LongLLaVAError,
    MissingDependencyError,
)
from longllava_trt.core.logs import ProgressEvent
from longllava_trt.plugins_trt.library import aot, build
from longllava_trt.plugins_trt.library.build import LIBRARY_NAME, build_library
from longllava_trt.plugins_trt.library.codegen import KernelImage

_NEEDS_TOOLS = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the build is untested: no g++ on this machine"
)
_HEADER = "#define NV_TENSORRT_MAJOR 9\n#define NV_TENSORRT_MINOR 8\n#define NV_TENSORRT_PATCH 7\n"


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """Headers that are no use to a compiler, but have a version."""
    folder = tmp_path / "include"
    folder.mkdir()
    (folder / "NvInferRuntime.h").write_text("#error these are no headers\n", encoding="utf-8")
    (folder / "NvInferVersion.h").write_text(_HEADER, encoding="utf-8")
    return folder


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Compile nothing; returns what would have been compiled."""
    asked: list[dict[str, Any]] = []

    def compile_images(folder: Path, **options: Any) -> list[KernelImage]:
        asked.append(options)
        image = KernelImage(
            name="k",
            symbol="k",
            arch=options["archs"][0],
            threads=32,
            shared_bytes=0,
            is_arch_specific=False,
        )
        for suffix in ("cubin", "ptx"):
            (folder / f"{image.stem}.{suffix}").write_bytes(b"code")
        return [image]

    monkeypatch.setattr(build, "compile_images", compile_images)
    return asked


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write a file instead of a library; returns the digests that went into it."""
    written: list[str] = []

    def link_library(folder: Path, sources: Path, *, headers: Path, name: str) -> None:
        written.append((folder / "tables.cpp").read_text(encoding="utf-8").split('"')[5])
        (folder / name).write_text("library", encoding="utf-8")

    monkeypatch.setattr(build, "link_library", link_library)
    return written


def test_the_same_build_is_found_again(
    tmp_path: Path, include: Path, no_kernels: list[Any], links: list[str]
) -> None:
    first = build_library(cache=tmp_path, include=include)
    assert first == build_library(cache=tmp_path, include=include, archs=(120, 90, 86, 80, 80))
    assert len(no_kernels) == len(links) == 1
    assert no_kernels[0]["archs"] == [80, 86, 90, 120]
    assert first.path == tmp_path / "plugins" / first.digest / LIBRARY_NAME
    assert (first.version, first.archs, first.dtypes) == (
        "1",
        (80, 86, 90, 120),
        ("bf16", "fp16", "fp32"),
    )
    # nothing but the library and its folder is left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["include", "plugins"]


def test_every_source_of_the_library_is_in_its_digest() -> None:
    root = Path(build.__file__).resolve().parents[1]
    hashed = {file for pattern in build._SOURCES for file in root.glob(pattern)}
    rooms = (root / name for name in ("kernels", "launch_plans", "library", "csrc"))
    written = {f for room in rooms for f in room.rglob("*") if f.suffix in {".py", ".cpp", ".h"}}
    assert written | {root / "spec.py", root / "plugin_formats.py"} <= hashed


@pytest.mark.parametrize("pattern", build._SOURCES)
def test_sources_are_where_the_digest_looks_for_them(pattern: str) -> None:
    assert list(build._HERE.glob(pattern)), "a file that was moved no longer changes the digest"


@pytest.mark.parametrize(
    "changed",
    [
        {"archs": (80,)},
        {"dtypes": ("bf16",)},
        {"weight_formats": ("none",)},
        {"heads": ((64, 4),)},
        "compiler",
        "headers",
        "sources",
        "triton",
    ],
    ids=str,
)
def test_whatever_goes_in_changes_the_digest(
    tmp_path: Path,
    include: Path,
    no_kernels: list[Any],
    links: list[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: Any,
) -> None:
    first = build_library(cache=tmp_path, include=include)
    options: dict[str, Any] = {}
    if changed == "compiler":
        monkeypatch.setattr(build, "compiler_version", lambda: "g++ 99")
    elif changed == "headers":
        (include / "NvInferVersion.h").write_text(_HEADER.replace("9", "10"), encoding="utf-8")
    elif changed == "triton":
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")
    elif changed == "sources":
        room = tmp_path / "room"
        shutil.copytree(build._HERE, room)
        shutil.copytree(build._HERE.parent / "core", tmp_path / "core")
        monkeypatch.setattr(build, "_HERE", room)
        assert build_library(cache=tmp_path, include=include) == first
        with (room / "csrc" / "launch.cpp").open("a", encoding="utf-8") as file:
            file.write("\n")
    else:
        options = changed
    assert build_library(cache=tmp_path, include=include, **options).digest != first.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"archs": (75,)}, "expected compute capabilities from 80 (A100) on, got [75]"),
        ({"archs": ()}, "from 80 (A100) on, got []"),
        ({"dtypes": ("fp8",)}, "expected dtypes from bf16, fp16, fp32; got fp8"),
        ({"weight_formats": ("int3",)}, "expected weight formats from none, int8, int4; got int3"),
        ({"dtypes": ()}, "got none"),
        ({"heads": ((40, 4), (64, 0), (64, 4))}, "groups of at least 1; got 40x4, 64x0"),
        ({"heads": ()}, "of a multiple of 16 elements, and groups of at least 1; got none"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_library(cache=tmp_path, **options)
    assert message in str(caught.value)


def test_a_missing_compiler_is_named(
    tmp_path: Path, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(MissingDependencyError, match="'no-such-compiler' was not found; install"):
        build_library(cache=tmp_path, include=include)


def test_missing_triton_is_named(
    tmp_path: Path, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"longllava-trt\[plugins\]"):
        build_library(cache=tmp_path, include=include)
    assert not list((tmp_path / "plugins").rglob("*.so"))


@_NEEDS_TOOLS
def test_the_compilers_last_lines_are_told(
    tmp_path: Path, include: Path, no_kernels: list[Any]
) -> None:
    with pytest.raises(LongLLaVAError, match=r"(?s)C\+\+ compiler refused.*these are no headers"):
        build_library(cache=tmp_path, include=include)
    assert not list(tmp_path.rglob("*.so"))


def test_a_kernel_that_does_not_compile_is_told(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    with pytest.raises(LongLLaVAError, match=r"(?s)a kernel did not compile.*fp5"):
        aot.compile_images(
            tmp_path,
            archs=[80],
            dtypes=["fp5"],
            weight_formats=["none"],
            heads=[(128, 4)],
            triton_cache=tmp_path / "triton",
        )


@pytest.mark.parametrize("variable", ["LONGLLAVA_CACHE", "XDG_CACHE_HOME", "HOME", "TMPDIR"])
def test_the_cache_is_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("LONGLLAVA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    if variable == "TMPDIR":
        # a home that cannot be written
        (tmp_path / "file").write_text("", encoding="utf-8")
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setenv(variable, str(tmp_path))
    expected = {
        "LONGLLAVA_CACHE": tmp_path,
        "XDG_CACHE_HOME": tmp_path / "longllava-trt",
        "HOME": tmp_path / ".cache" / "longllava-trt",
        "TMPDIR": tmp_path / "temporary" / f"user-{os.getuid()}" / "longllava-trt",
    }
    assert build._default_cache() == expected[variable]


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name in ("LONGLLAVA_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(InputError, match="set LONGLLAVA_CACHE"):
        build._default_cache()


@_NEEDS_TOOLS
@pytest.mark.slow
def test_two_builds_from_nothing_are_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    events: list[ProgressEvent] = []
    options: dict[str, Any] = {"archs": (80,), "dtypes": ("bf16",), "weight_formats": ("none",)}
    first = build_library(cache=tmp_path / "a", progress=events.append, **options)
    # another folder, another environment
    command = "from longllava_trt.plugins_trt.library.build import build_library; from pathlib import Path; import sys\n"
    command += f"build_library(cache=Path(sys.argv[1]), **{options!r})"
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEBUG": "1"}
    other = tmp_path / "somewhere" / "else"
    subprocess.run([sys.executable, "-c", command, str(other)], env=environment, check=True)
    second = other / first.path.relative_to(tmp_path / "a")
    code = first.path.read_bytes()
    assert code == second.read_bytes()
    for path in (str(tmp_path), str(Path(__file__).parents[3]), sys.prefix):
        assert path.encode() not in code
    assert (events[0].done, events[0].total) == (0, None)
    assert (events[-1].done, events[-1].total) == (33, 33)
