"""The census sees what it is to see: in text like nvdisasm's, and in a kernel that converts on purpose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from longllava_trt.plugins_trt.kernels import census
from longllava_trt.plugins_trt.kernels.census import count_loops, find_faults, matrix_loop

ROOT = Path(__file__).parents[3]
PLANTED = ROOT / "tests/plugins_trt/data/planted_conversion.py"
CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
.L_x_1:
        /*0020*/              @!P0 I2F.S8 R8, R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R12, R4, R8, R12 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   STL [R1], R5 ;
        /*0060*/              @!P2 BRA.U.ANY `(.L_x_0) ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
"""


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    monkeypatch.setattr(census, "_disassemble", lambda cubin: CODE)
    return count_loops(b"")


def test_loops_are_what_lies_between_a_label_and_a_jump_back(loops: list[Counter[str]]) -> None:
    inner = {"I2F": 1, "HMMA": 1, "BRA": 1}
    assert loops == [inner, {**inner, "LDSM": 1, "STL": 1, "BRA": 2}]


def test_of_loops_with_as_many_products_the_inner_one_counts(loops: list[Counter[str]]) -> None:
    assert matrix_loop(loops) == loops[0]
    assert matrix_loop([Counter({"FFMA": 9})]) is None
    assert matrix_loop([]) is None


def test_conversions_local_memory_and_many_loads_are_faults() -> None:
    loop = Counter(HMMA=8, LDSM=5, I2F=2, I2FP=1, LDL=1, STL=3)
    common = ["2 I2F", "1 I2FP", "1 LDL", "3 STL"]
    assert find_faults(loop, is_large=False) == common
    assert find_faults(loop, is_large=True) == [*common, "5 LDSM for 8 HMMA"]
    assert find_faults(Counter(HMMA=8, LDSM=4, PRMT=99), is_large=True) == []
    assert find_faults(Counter(HGMMA=4, LDSM=4), is_large=True) == []


@pytest.mark.slow
def test_a_planted_conversion_is_found_in_machine_code() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    said = subprocess.run(
        [sys.executable, str(PLANTED), "80"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    faults = json.loads(said.stdout)
    assert len(faults) == 1
    assert re.fullmatch(r"[1-9]\d* I2F", faults[0])
