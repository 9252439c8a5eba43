"""Code embedded in the library can be taken by the oldest drivers that docs/plugins.md names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longllava_trt.plugins_trt.library.build import PluginLibrary

DOCUMENT = Path(__file__).parents[3] / "docs" / "plugins.md"
CUDA = {(51, 7): 12, (65, 8): 13}
"""Oldest major version of CUDA whose drivers load a cubin, by the ELF header's OS and ABI version."""
OLDEST_DRIVER = {12: 525, 13: 580}
"""By CUDA's major version: a driver loads the cubins of every minor version of its major one."""
PTX = {(8, 7): 570, (8, 8): 575, (9, 0): 580}
"""Oldest driver that translates a version of PTX; NVIDIA's release notes of CUDA 12.8, 12.9 and 13.0."""
COMPILE = """\
import sys
from longllava_trt.plugins_trt.kernels import variants
from longllava_trt.plugins_trt.kernels.resources import compile_kernel
code = compile_kernel(variants.list_variants("bf16")[0], arch=int(sys.argv[1])).asm["cubin"]
print(code[7], code[8])
"""


def cubins(library: bytes) -> list[tuple[int, int]]:
    """Return OS and ABI version of every cubin inside; the library's own header comes first."""
    starts = [found.start() for found in re.finditer(rb"\x7fELF", library)]
    return [(library[start + 7], library[start + 8]) for start in starts[1:]]


def promised(words: str) -> int:
    """Return the driver in the row of docs/plugins.md that begins so."""
    found = re.search(
        rf"^\| {re.escape(words)}[^|]*\|[^|]*\| R(\d+) ", DOCUMENT.read_text(), re.MULTILINE
    )
    assert found is not None, f"{DOCUMENT} says nothing of {words}"
    return int(found[1])


def test_code_for_an_a100_is_taken_by_the_drivers_promised(plugin_library: PluginLibrary) -> None:
    content = plugin_library.path.read_bytes()
    kinds = set(cubins(content))
    assert kinds
    assert max(OLDEST_DRIVER[CUDA[kind]] for kind in kinds) <= promised("cubins for sm_80")
    versions = {
        (int(major), int(minor))
        for major, minor in re.findall(rb"\.version (\d+)\.(\d+)\s", content)
    }
    assert versions
    assert max(PTX[version] for version in versions) <= promised("PTX for sm_80")


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 120])
def test_code_for_newer_gpus_is_taken_by_the_drivers_promised(arch: int, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="drivers for newer GPUs are unproven: no Triton")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(arch)],
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(DOCUMENT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    system, abi = map(int, done.stdout.split())
    assert OLDEST_DRIVER[CUDA[system, abi]] <= promised("cubins for sm_90")
