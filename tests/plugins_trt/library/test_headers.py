"""Places and order of the search for TensorRT's headers, and the error where there are none."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import MissingDependencyError
from longllava_trt.plugins_trt.library import headers
from longllava_trt.plugins_trt.library.headers import find_headers

_OLD = "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 9\n#define NV_TENSORRT_PATCH 1\n"
_NEW = "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 2\n#define TRT_PATCH_ENTERPRISE 0\n"
_NEW += "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"


def _write(folder: Path, version: str = _OLD) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").write_text("", encoding="utf-8")
    (folder / "NvInferVersion.h").write_text(version, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR", raising=False)
    monkeypatch.setattr(headers, "_SYSTEM", ())
    monkeypatch.setattr(headers, "_installed", list)


def test_the_users_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cached/headers/kernel_lens/include/tensorrt", "installed", "system", "set", "given")
    cached, installed, system, chosen, given = (_write(tmp_path / name) for name in names)
    cache = tmp_path / "cached"
    assert find_headers(None, cache=cache).folder == cached
    monkeypatch.setattr(headers, "_installed", lambda: [installed])
    assert find_headers(None, cache=cache).folder == installed
    monkeypatch.setattr(headers, "_SYSTEM", (str(system),))
    assert find_headers(None, cache=cache).folder == system
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(chosen))
    assert find_headers(None, cache=cache).folder == chosen
    assert find_headers(given, cache=cache).folder == given


@pytest.mark.parametrize(("text", "version"), [(_OLD, "10.9.1"), (_NEW, "11.2.0"), ("", "?.?.?")])
def test_the_version_is_read(tmp_path: Path, text: str, version: str) -> None:
    assert find_headers(_write(tmp_path / "include", text), cache=tmp_path).version == version


def test_a_folder_without_headers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingDependencyError, match=r"expected NvInferRuntime.h in .*; pass"):
        find_headers(tmp_path, cache=tmp_path)
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"expected NvInferRuntime.h in"):
        find_headers(None, cache=tmp_path)


def test_only_the_headers_of_the_package_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(command: list[str], **_: Any) -> Any:
        asked.append(command)
        wheel = Path(command[command.index("--dest") + 1], "package.whl")
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in ("NvInferRuntime.h", "NvInferVersion.h"):
                archive.writestr(f"kernel_lens/include/tensorrt/{name}", _OLD)
            archive.writestr("kernel_lens/compiler.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    cache = tmp_path / "cache"
    first = find_headers(None, cache=cache)
    assert find_headers(None, cache=cache) == first
    assert first.version == "10.9.1"
    (command,) = asked
    assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
    assert sorted(p.name for p in cache.rglob("*.*")) == ["NvInferRuntime.h", "NvInferVersion.h"]


def test_a_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "trying\nno route to host\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(MissingDependencyError, match=r"\(no route to host\); pass include="):
        find_headers(None, cache=tmp_path)
