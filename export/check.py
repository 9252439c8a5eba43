"""Checks that an exported stage is valid ONNX and equals its contract."""

from __future__ import annotations

import onnx

from longllava_trt.core.dtypes import onnx_name
from longllava_trt.core.errors import ExportError
from longllava_trt.core.stage_spec import StageSpec, TensorSpec

__all__ = ["check_stage"]


def check_stage(model: onnx.ModelProto, spec: StageSpec) -> None:
    """Run the ONNX checker with shape inference; compare inputs and outputs with the contract.

    Raises:
        ExportError: Lists all differences.
    """
    graph = model.graph
    weights = {init.name for init in graph.initializer if init.external_data}
    actual = [v for v in graph.input if v.name not in weights]
    problems = [
        *_differences("input", actual, spec.inputs),
        *_differences("output", graph.output, spec.outputs),
    ]
    if problems:
        raise ExportError(f"{spec.name}: differs from its contract: " + "; ".join(problems))
    try:
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(f"{spec.name}: the ONNX checker refuses the graph: {err}") from err


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with external initializers as inputs: the checker refuses hard-linked data."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    external = [init for init in copy.graph.initializer if init.external_data]
    for init in external:
        copy.graph.input.append(
            onnx.helper.make_tensor_value_info(init.name, init.data_type, list(init.dims))
        )
        copy.graph.initializer.remove(init)
    return copy


def _differences(
    kind: str, actual: list[onnx.ValueInfoProto], expected: tuple[TensorSpec, ...]
) -> list[str]:
    got, want = ([*map(_describe, actual)], [*map(_describe_spec, expected)])
    if len(got) != len(want):
        return [f"must have {len(want)} {kind}s, got {len(got)}"]
    return [f"{kind} must be {w}, got {g}" for g, w in zip(got, want, strict=True) if g != w]


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
    return f"{value.name} [{', '.join(dims)}] {onnx_name(tensor.elem_type)}"


def _describe_spec(spec: TensorSpec) -> str:
    return f"{spec.name} [{', '.join(map(str, spec.shape))}] {spec.dtype}"
