"""Each operator alone, as the bundle's own node."""

import pytest

from longllava_trt.core.parity import FLOAT32_OPERATOR, ParityReport
from longllava_trt.validation.parity_case import ParityCase
from tests.validation.conftest import assert_all_passed, rows_of


@pytest.mark.parametrize("length", [1, 3, 65])
@pytest.mark.parametrize(
    "operator",
    [
        "SelectiveScan.fast",
        "SelectiveScan.onnx",
        "SparseMoE.fast",
        "SparseMoE.onnx",
        "CausalConvWithState",
        "Attention",
    ],
)
def test_operator_equals_reference(
    report: ParityReport, subject: ParityCase, operator: str, length: int
) -> None:
    rows = rows_of(report, f"op.{operator}.len{length}.")
    if operator.startswith("SparseMoE") and not subject.reference.config.decoder.moe_layers:
        assert rows == [], "a dense model has no router"
    else:
        assert_all_passed(rows)
        assert all(row.tolerance == FLOAT32_OPERATOR for row in rows)


def test_outputs_and_carried_state_are_both_compared(report: ParityReport) -> None:
    names = {row.name.rpartition(".")[2] for row in rows_of(report, "op.")}
    assert names == {"y", "state_out", "output", "present_state", "key", "value"}
