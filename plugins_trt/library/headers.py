"""Finds TensorRT's C++ headers: the user's own, or else NVIDIA's from a package on PyPI.

No pip wheel of TensorRT ships headers. `kernel-lens` carries them under their Apache-2.0 licence;
of that package only the folder `include/tensorrt` is ever taken, and only where a library is built.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from longllava_trt.core.errors import MissingDependencyError

__all__ = ["TensorRTHeaders", "find_headers"]

_PACKAGE = "kernel-lens==2.0.1"
_FOLDER = "kernel_lens/include/tensorrt"
_FILE = "NvInferRuntime.h"
_SYSTEM = (
    "/usr/include",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/include",
    "/usr/local/tensorrt/include",
)
_REMEDY = "pass include=, set TENSORRT_INCLUDE_DIR, or `pip install kernel-lens`"


@dataclass(frozen=True, slots=True)
class TensorRTHeaders:
    """A folder with `NvInferRuntime.h`, and the version that it declares."""

    folder: Path
    version: str


def find_headers(include: Path | None, *, cache: Path) -> TensorRTHeaders:
    """Return the first headers found, in this order.

    ``include``; the environment's TENSORRT_INCLUDE_DIR; a system folder; an installed `kernel-lens`;
    that package, fetched by pip into the cache.

    Args:
        include: A folder that must hold them, if given.
        cache: Receives what has to be fetched.

    Raises:
        MissingDependencyError: If the folder named by the user has none, or nothing could be fetched.
    """
    chosen = include or os.environ.get("TENSORRT_INCLUDE_DIR")
    if chosen:
        folder = Path(chosen)
        if not (folder / _FILE).is_file():
            raise MissingDependencyError(
                f"TensorRT headers: expected {_FILE} in {folder}, found none; {_REMEDY}"
            )
        return _describe(folder)
    for folder in (*map(Path, _SYSTEM), *_installed(), cache / "headers" / _FOLDER):
        if (folder / _FILE).is_file():
            return _describe(folder)
    return _describe(_fetch(cache / "headers"))


def _installed() -> list[Path]:
    spec = importlib.util.find_spec("kernel_lens")
    places = spec.submodule_search_locations if spec else None
    return [Path(place, "include", "tensorrt") for place in places or ()]


def _fetch(target: Path) -> Path:
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", downloads]
        done = subprocess.run([*command, _PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(downloads).glob("*.whl"))
        if done.returncode or not wheels:
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise MissingDependencyError(
                f"TensorRT headers: none on this machine, and {_PACKAGE} could not be fetched "
                f"({said}); {_REMEDY}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [n for n in wheel.namelist() if n.startswith(_FOLDER + "/")]
            wheel.extractall(staging, names)
    staging.replace(target)
    return target / _FOLDER


def _describe(folder: Path) -> TensorRTHeaders:
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
    parts = []
    for name in ("MAJOR", "MINOR", "PATCH"):
        # 10.14 and later define these by way of TRT_…_ENTERPRISE
        found = re.findall(rf"#define (?:NV_TENSORRT|TRT)_{name}(?:_\w+)? (\d+)", text)
        parts.append(found[0] if found else "?")
    return TensorRTHeaders(folder, ".".join(parts))
