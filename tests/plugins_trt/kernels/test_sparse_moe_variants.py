"""Kernels compiled ahead of time: they cover every launch, and fit a GPU without spilling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from longllava_trt.plugins_trt.kernels.sparse_moe_variants import list_variants
from longllava_trt.plugins_trt.launch_plans.sparse_moe import MoeShape, plan_launches

ROOT = Path(__file__).parents[3]

# a process of its own: what is interpreted in this one cannot be compiled in it
COMPILE = """
import json, sys
from longllava_trt.plugins_trt.kernels.census import find_faults
from longllava_trt.plugins_trt.kernels.resources import measure
from longllava_trt.plugins_trt.kernels.sparse_moe_variants import list_variants

dtype, arch = sys.argv[1], int(sys.argv[2])
variants = {v.name: v for w in ("none", "int8", "int4") for v in list_variants(dtype, w)}
found = {}
for name, variant in variants.items():
    r = measure(variant, arch=arch)
    rows = variant.blocks["block_rows"] if "grouped" in name else 0
    found[name] = {
        "spilled_bytes": r.spilled_bytes,
        "shared_bytes": r.shared_bytes,
        "has_wide_copies": r.has_wide_copies,
        "loop": r.loop,
        "rows": rows,
        "faults": find_faults(r.loop, is_large=rows >= 64) if r.loop else [],
    }
print(json.dumps(found))
"""
SHARED_KIB = {80: 99, 89: 99, 90: 227, 120: 99}
"""Shared memory that a program may have; sm_80 has 163, but its code runs on sm_86 and sm_89."""


@pytest.mark.parametrize("weights", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_launch_has_a_variant(
    dtype: Literal["fp32", "fp16", "bf16"], weights: Literal["none", "int8", "int4"]
) -> None:
    variants = list_variants(dtype, weights)
    compiled = {
        (v.kernel.__name__, tuple(v.blocks.items()), v.num_warps, v.num_stages) for v in variants
    }
    assert len(compiled) + (dtype != "fp32") == len(variants), "a kernel is compiled twice"
    for num_tokens in (1, 16, 17, 100, 600, 5000):
        for experts, top_k in ((4, 2), (16, 2), (64, 8)):
            shape = MoeShape(num_tokens, 64, 160, experts, top_k)
            for launch in plan_launches(shape, itemsize=4 if dtype == "fp32" else 2):
                key = (launch.kernel, tuple(launch.blocks.items()))
                assert (*key, launch.num_warps, launch.num_stages) in compiled
                kernel = next(v for v in variants if v.kernel.__name__ == launch.kernel)
                types = list(kernel.signature.values())
                assert types == sorted(types, key=lambda t: (t[0] != "*", t == "constexpr"))
                integers = [name for name, t in kernel.signature.items() if t == "i32"]
                assert integers == list(launch.integers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "arch"),
    [
        ("bf16", 80),
        ("fp16", 80),
        ("fp32", 80),
        ("bf16", 89),
        ("bf16", 90),
        ("bf16", 120),
    ],
)
def test_no_variant_spills_or_converts(dtype: str, arch: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype, str(arch)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [name for name, figures in found.items() if figures["spilled_bytes"]] == []
    most = max(figures["shared_bytes"] for figures in found.values())
    assert most <= SHARED_KIB[arch] * 1024
    products = {n: figures for n, figures in found.items() if "decode" in n or "grouped" in n}
    assert all(figures["has_wide_copies"] for figures in products.values()), (
        "weights are loaded in small pieces"
    )
    assert {n: figures["faults"] for n, figures in found.items() if figures["faults"]} == {}
    if dtype != "fp32":
        assert [n for n, figures in products.items() if figures["loop"] is None] == []
    if arch == 90:
        large = [figures["loop"] for figures in products.values() if figures["rows"] >= 64]
        assert len(large) == 12
        assert all(loop["HGMMA"] for loop in large)
