"""Kernels compiled ahead of time: they cover every launch, and fit an A100 without spilling."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from longllava_trt.plugins_trt.launch_plans.mamba_scan import MambaScanShape, plan_mamba_scan
from longllava_trt.plugins_trt.launch_plans.mixers import plan_causal_conv, plan_selective_scan
from longllava_trt.plugins_trt.launch_plans.plan import Launch

ROOT = Path(__file__).parents[3]

# a process of its own: what is interpreted in this one cannot be compiled in it
MEASURE = """
import sys
from longllava_trt.plugins_trt.kernels.resources import measure
from longllava_trt.plugins_trt.kernels.variants import list_variants
for dtype in sys.argv[2:]:
    for variant in list_variants(dtype):
        print(variant.name, measure(variant, arch=int(sys.argv[1])).spilled_bytes)
"""


KERNELS = 14
"""Kernels of scans and convolution for one dtype."""


def planned(itemsize: int) -> list[Launch]:
    launches = []
    for batch, seq_len in ((1, 1), (3, 2), (1, 3), (1, 65), (2, 1000), (8, 4096)):
        for d_inner in (64, 8192):
            launches += plan_selective_scan(batch, seq_len, d_inner, 16)[0]
            for last in (False, True):
                launches.append(plan_causal_conv(batch, seq_len, d_inner, 4, channels_last=last))
            for dt_rank in (4, 256):
                shape = MambaScanShape(batch, seq_len, d_inner, 16, dt_rank)
                launches += plan_mamba_scan(shape, eps=1e-6, itemsize=itemsize)[0]
    return launches


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_launch_has_a_variant(dtype: Literal["fp32", "fp16", "bf16"]) -> None:
    from longllava_trt.plugins_trt.kernels.variants import list_variants

    known = list_variants(dtype)
    found = {(v.kernel.__name__, tuple(v.blocks.items()), v.aligned) for v in known}
    assert len(found) == len(known) == KERNELS, "no kernel is compiled twice"
    for launch in planned(4 if dtype == "fp32" else 2):
        fitting = [
            v
            for v in known
            if (v.kernel.__name__, v.blocks) == (launch.kernel, launch.blocks)
            and all(launch.integers.get(name, 0) % 16 == 0 for name in v.aligned)
        ]
        variant = max(fitting, key=lambda v: len(v.aligned))
        assert variant.num_warps == launch.num_warps
        types = list(variant.signature.values())
        assert types == sorted(types, key=lambda t: (t[0] != "*", t == "constexpr"))
        integers = [name for name, t in variant.signature.items() if t in {"i32", "i64"}]
        assert integers == list(launch.integers)
        constants = [name for name, t in variant.signature.items() if t == "constexpr"]
        assert constants == list(launch.blocks)


def run_compiled(script: str, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
def test_nothing_spills_on_an_a100() -> None:
    lines = run_compiled(MEASURE, "80", "bf16", "fp16", "fp32").splitlines()
    assert len(lines) == 3 * KERNELS
    assert [line for line in lines if not line.endswith(" 0")] == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["86", "89", "90", "120"], ids=lambda a: f"sm_{a}")
def test_nothing_spills_on_other_targets(arch: str) -> None:
    lines = run_compiled(MEASURE, arch, "bf16").splitlines()
    assert len(lines) == KERNELS
    assert [line for line in lines if not line.endswith(" 0")] == []


def test_an_interpreted_kernel_is_refused() -> None:
    from longllava_trt.core.errors import LongLLaVAError
    from longllava_trt.plugins_trt.kernels.resources import compile_kernel
    from longllava_trt.plugins_trt.kernels.variants import list_variants

    with pytest.raises(LongLLaVAError, match="TRITON_INTERPRET"):
        compile_kernel(list_variants("bf16")[0], arch=80)


def test_the_table_of_the_documentation_lists_every_kernel() -> None:
    from longllava_trt.plugins_trt.kernels.resources import list_kernels

    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    table = text.partition("## What the kernels take")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert listed == [variant.name for variant in list_kernels("bf16", arch=80)]
