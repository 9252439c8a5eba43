"""The CPU kernels on machines without this one's vectors: compiled for those, and held against the same oracles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SSE = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
_MACHINES = {
    "avx2": ("haswell", f"{_SSE},+avx,+avx2,+fma,+f16c,+bmi,+bmi2", 8),
    "sse4": ("nehalem", _SSE, 4),
}
_KERNELS = (
    "attention",
    "conv",
    "linear",
    "moe",
    "selective_scan",
    "stored_matrix",
)


@pytest.mark.slow
@pytest.mark.parametrize("machine", _MACHINES)
def test_kernels_for_another_machine_equal_the_oracles(machine: str) -> None:
    cpu, features, lanes = _MACHINES[machine]
    cache = f"{os.environ['NUMBA_CACHE_DIR']}-{machine}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": cache,
    }
    script = f"""
import sys, pytest
from longllava_trt.plugins_trt.cpu.vector_ir import LANES
assert LANES == {lanes}, LANES
sys.exit(pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in _KERNELS]
    done = subprocess.run(
        [sys.executable, "-c", script, *files],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
