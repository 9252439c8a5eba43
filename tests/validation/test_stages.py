"""Every stage, and the decoder's three ways to take a prompt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.core.parity import FLOAT32_OPERATOR, ParityReport
from longllava_trt.validation import validate
from longllava_trt.validation.parity_case import ParityCase
from longllava_trt.validation.run import run_levels
from tests.validation.conftest import Made, assert_all_passed, rows_of


@pytest.mark.parametrize("stage", ["vision", "projector", "embed", "decoder"])
@pytest.mark.parametrize("kernels", ["fast", "onnx"])
def test_stage_equals_reference(report: ParityReport, kernels: str, stage: str) -> None:
    assert_all_passed(rows_of(report, f"stage.{kernels}.{stage}."))


@pytest.mark.parametrize("way", ["chunks", "steps"])
@pytest.mark.parametrize("kernels", ["fast", "onnx"])
def test_whole_prompt_equals_pieces(report: ParityReport, kernels: str, way: str) -> None:
    rows = rows_of(report, f"stage.{kernels}.decoder.{way}==whole.")
    assert [row.name.rpartition(".")[2] for row in rows] == ["logits", "state"]
    assert all(row.tolerance == FLOAT32_OPERATOR for row in rows)
    assert_all_passed(rows)


def test_kernels_agree_and_so_does_plain_onnxruntime(report: ParityReport) -> None:
    assert_all_passed(rows_of(report, "stage.onnx==fast.decoder.steps.logits"))
    assert_all_passed(rows_of(report, "stage.plain_onnxruntime.decoder.whole."))


def test_linked_weights_skip_plain_onnxruntime_with_a_reason(made: Made, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made[0], bundle)
    for path in (bundle / "weights").iterdir():
        path.unlink()
        path.symlink_to(made[1] / path.name)
    report = run_levels(ParityCase.open(bundle, made[1]), ["stage"], kernels=["onnx"])
    assert report.passed
    (row,) = rows_of(report, "stage.plain_onnxruntime.")
    assert row.status == "skipped"
    assert "symbolic links" in (row.note or "")


@pytest.mark.parametrize(
    "arguments",
    [
        {"levels": ["stages"]},
        {"levels": []},
        {"kernels": ["slow"]},
        {"seed": -1},
        {"max_new_tokens": 0},
    ],
    ids=["level", "no-level", "kernels", "seed", "tokens"],
)
def test_bad_arguments_are_refused(made: Made, arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match="validate:"):
        validate(*made, **arguments)  # type: ignore[arg-type]
