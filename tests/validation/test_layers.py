"""The residual stream and the carried state after every layer."""

import pytest

from longllava_trt.core.parity import ParityReport
from longllava_trt.core.stage_spec import present_name
from longllava_trt.models.contracts import carried_state, layer_output_names
from longllava_trt.validation.parity_case import ParityCase
from tests.validation.conftest import assert_all_passed, rows_of


@pytest.mark.parametrize("kernels", ["fast", "onnx"])
def test_every_layer_equals_reference(
    report: ParityReport, subject: ParityCase, kernels: str
) -> None:
    config = subject.reference.config
    state = carried_state(config.decoder, "float32")
    expected = [
        *layer_output_names("vision", config),
        *layer_output_names("decoder", config),
        *(f"decoder.{present_name(spec.name)}" for spec in state),
    ]
    rows = rows_of(report, f"layer.{kernels}.")
    assert [row.name.removeprefix(f"layer.{kernels}.") for row in rows] == expected
    assert_all_passed(rows)
