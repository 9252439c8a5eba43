"""The repository's own tests on the GPU: those of the kernels, and those marked `gpu`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.wheels import use_wheels

__all__ = ["gpu_tests", "kernel_tests"]

_ROOT = Path(__file__).resolve().parents[2]
_PROCESSES = 8
"""Compiling a kernel takes a core for a second or so."""


def kernel_tests(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield how the kernels' tests ended; dry, of their launch arithmetic alone."""
    dry = ["tests/plugins_trt/launch_plans/test_sparse_moe.py"]
    yield from _pytest(context, dry if context.is_dry else ["tests/plugins_trt/kernels"])


def gpu_tests(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield how the tests marked `gpu` ended."""
    yield from _pytest(context, ["-m", "gpu", "tests/runtime"])


def _pytest(context: BenchContext, arguments: list[str]) -> Iterator[dict[str, Any]]:
    if importlib.util.find_spec("pytest") is None:
        yield {"case": "not run: pytest is not installed; scan, moe and conv compare as well"}
        return
    spread = ["-n", str(_PROCESSES), "--dist", "worksteal"]
    parallel = [] if context.is_dry or importlib.util.find_spec("xdist") is None else spread
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *parallel]
        paths = [str(use_wheels(context.wheels))] if context.wheels else []
        paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        code = subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            cwd=_ROOT,
            env=environment,
            check=False,
        ).returncode
        if not report.is_file():
            yield {"case": "pytest", "ok": False, "failure": f"exit status {code}, see log.txt"}
            return
        yield from _rows(ET.parse(report).getroot(), code)


def _rows(root: ET.Element, code: int) -> Iterator[dict[str, Any]]:
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in root.iter("testsuite"):
        counts = {name: n + int(suite.get(name, "0")) for name, n in counts.items()}
    # 5: nothing was collected, as where no test has the mark
    yield {"case": "all", "ok": code in {0, 5}, **counts}
    for case in root.iter("testcase"):
        for kind in ("failure", "error", "skipped"):
            found = case.find(kind)
            if found is not None:
                name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
                message = (found.get("message") or "").strip().splitlines() or [""]
                ok = None if kind == "skipped" else False
                yield {"case": name, "ok": ok, "failure": message[0][:200]}
