"""The specification agrees with the ONNX standard, where there is one, and with the bodies."""

from __future__ import annotations

import pytest
from onnx import defs

from longllava_trt.plugins_trt.bodies import function_bodies
from longllava_trt.plugins_trt.spec import (
    CAUSAL_CONV,
    OPERATORS,
    SELECTIVE_SCAN,
    SPARSE_MOE,
    OperatorSpec,
)


def test_causal_conv_is_the_standard_operator() -> None:
    schema = defs.get_schema(CAUSAL_CONV.op_type, CAUSAL_CONV.version, CAUSAL_CONV.domain)
    assert schema.since_version == CAUSAL_CONV.version
    assert tuple(v.name for v in schema.inputs) == CAUSAL_CONV.input_names
    assert tuple(v.name for v in schema.outputs) == CAUSAL_CONV.output_names
    assert [a.name for a in CAUSAL_CONV.attributes] == list(schema.attributes)


@pytest.mark.parametrize("spec", [SELECTIVE_SCAN, SPARSE_MOE], ids=lambda s: s.op_type)
def test_body_has_the_signature_of_its_spec(spec: OperatorSpec) -> None:
    (body,) = [f for f in function_bodies() if (f.domain, f.name) == (spec.domain, spec.op_type)]
    assert tuple(body.input) == spec.input_names
    assert tuple(body.output) == spec.output_names
    assert list(body.attribute) == [a.name for a in spec.attributes if a.default is None]


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_quantised_body_takes_the_optional_inputs_too(weight_format: str) -> None:
    _, body = function_bodies(weight_format)
    optional = tuple(v.name for v in SPARSE_MOE.optional_inputs)
    assert tuple(body.input) == SPARSE_MOE.input_names + optional
    assert list(body.attribute) == [a.name for a in SPARSE_MOE.attributes]


@pytest.mark.parametrize("spec", OPERATORS, ids=lambda s: s.op_type)
def test_output_axes_come_from_inputs(spec: OperatorSpec) -> None:
    known = {axis for value in spec.inputs for axis in value.axes}
    assert {axis for value in spec.outputs for axis in value.axes} <= known
