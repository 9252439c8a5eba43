"""One stage from PyTorch to ONNX, with no weight in memory.

The model has only fake tensors, and its weights become inputs of the graph, so that no pass can
fold a weight. Then `longllava_trt.export.weights` turns them into initializers.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensorMode

from longllava_trt.core.errors import ExportError
from longllava_trt.core.stage_spec import StageSpec, TensorSpec
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.export.quantisation.graph import read_quantised_experts
from longllava_trt.export.stages import STAGE_MODULES
from longllava_trt.models.contracts import layer_output_names
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import tensor_names
from longllava_trt.reference.model import LongLLaVA

__all__ = ["OPSET", "trace_stage"]

OPSET = 27
"""ONNX opset of every exported graph; the first with `CausalConvWithState`."""

_TRACED_OPSET = 18
_PREFIX = "model."
_SYMBOL = re.compile(r"\w+")
_EXAMPLE_SIZES = {"batch": 2, "seq_len": 5, "capacity": 11, "num_images": 3}
"""Sizes of the traced example: all different, and none is 1, so that no dim is specialised."""

_SAME_IN_BOTH = frozenset(
    """
    Add Attention Cast Concat Constant Cos Div Erf Expand Flatten Gather Identity
    LayerNormalization MatMul Mul Range Reshape Shape Sigmoid Sin Slice Split Squeeze Sub
    Transpose Unsqueeze ReduceMean Conv Gemm
    """.split()
)
"""Standard operators whose meaning did not change from the opset that torch emits to ours.

Later versions of these only added dtypes, or attributes whose default is the old behaviour. Any
other traced node stops the export, so that no operator can change its meaning unnoticed.
"""


def trace_stage(
    config: ModelSpec, spec: StageSpec, *, dtype: str, moe_quant: MoeQuant = "none"
) -> ir.Model:
    """Trace a stage.

    Args:
        config: The model.
        spec: The stage's contract.
        dtype: Arithmetic dtype: float32, float16 or bfloat16.
        moe_quant: Format of routed experts.

    Returns:
        The graph. Its inputs are the contract's, then its weights under their checkpoint names.

    Raises:
        ExportError: If torch cannot trace the stage, or traces a node that was not reviewed for the
            opset.
    """
    layers = layer_output_names(spec.name, config)
    output_names = [t.name for t in spec.outputs] + list(layers)
    try:
        with _quiet(), FakeTensorMode():
            stage = _build(config, spec.name, dtype)
            inputs = [_example(t) for t in spec.inputs]
            program = torch.export.export(
                stage, tuple(inputs), dynamic_shapes=_dynamic_shapes(spec), strict=False
            )
            traced = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_TRACED_OPSET,
                input_names=[t.name for t in spec.inputs],
                output_names=output_names,
                optimize=False,
                verbose=False,
            )
    except Exception as err:
        raise ExportError(f"{spec.name}: torch could not trace the stage: {err}") from err
    assert traced is not None, "Bug: torch.onnx.export with dynamo returns a program"
    model = traced.model
    _lift_weights(model.graph, tensor_names(config))
    if moe_quant != "none":
        read_quantised_experts(model.graph, config, quant=moe_quant)
    optimizer.optimize_ir(model, input_size_limit=4096, output_size_limit=4096)
    _drop_unused_weights(model.graph, keep=len(spec.inputs))
    del model.graph.outputs[len(spec.outputs) :]
    _name_dims(model.graph, spec)
    _set_opset(model, spec.name)
    _forget_origins(model)
    model.graph.name = spec.name
    return model


def _build(config: ModelSpec, stage: str, dtype: str) -> torch.nn.Module:
    """Build the stage around a model of fake tensors."""
    default = torch.get_default_dtype()
    # a fake module cannot change its dtype later
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        return STAGE_MODULES[stage](LongLLaVA(config)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def _example(spec: TensorSpec) -> torch.Tensor:
    shape = [_EXAMPLE_SIZES[d] if isinstance(d, str) else d for d in spec.shape]
    return torch.empty(shape, dtype=getattr(torch, spec.dtype))


def _dynamic_shapes(spec: StageSpec) -> tuple[object, ...]:
    """Mark the named dims as dynamic; a variadic parameter takes its shapes as one tuple."""
    marks = [
        {i: torch.export.Dim.DYNAMIC for i, d in enumerate(t.shape) if isinstance(d, str)}
        for t in spec.inputs
    ]
    return (*marks[:2], tuple(marks[2:])) if spec.name == "decoder" else tuple(marks)


def _lift_weights(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Turn initializers of parameters into inputs under their checkpoint names, without data."""
    for name in [n for n in graph.initializers if n.startswith(_PREFIX)]:
        value = graph.initializers.pop(name)
        value.const_value = None
        value.name = names[name.removeprefix(_PREFIX)]
        graph.inputs.append(value)


def _drop_unused_weights(graph: ir.Graph, *, keep: int) -> None:
    for value in list(graph.inputs[keep:]):
        if not value.uses():
            graph.inputs.remove(value)


def _name_dims(graph: ir.Graph, spec: StageSpec) -> None:
    """Give symbolic dims the contract's names, also in products such as `batch*seq_len`."""
    names: dict[str, str] = {}
    for value, want in zip(graph.inputs, spec.inputs, strict=False):
        for got, name in zip(value.shape or (), want.shape, strict=True):
            if isinstance(got, ir.SymbolicDim) and isinstance(name, str):
                names[str(got.value)] = name
    values = [*graph.inputs, *graph.initializers.values()]
    for value in [*values, *(o for node in graph for o in node.outputs)]:
        if value.shape is not None and not value.shape.frozen:
            for i, dim in enumerate(value.shape):
                if isinstance(dim, ir.SymbolicDim):
                    value.shape[i] = _SYMBOL.sub(
                        lambda match: names.get(match[0], match[0]), str(dim.value)
                    )


def _set_opset(model: ir.Model, stage: str) -> None:
    """Declare our opset, after a check that every traced node has the same meaning in it."""
    doubtful = set()
    for node in model.graph:
        if node.domain == "" and node.op_type not in _SAME_IN_BOTH:
            # a node says the version that it was written for; later ones must mean the same
            since = onnx.defs.get_schema(node.op_type, OPSET).since_version
            if since > (node.version or _TRACED_OPSET):
                doubtful.add(node.op_type)
    if doubtful:
        raise ExportError(
            f"{stage}: traced {', '.join(sorted(doubtful))}, whose meaning between opsets {_TRACED_OPSET} and "
            f"{OPSET} has not been reviewed; review it and add it to export/trace.py"
        )
    for node in model.graph:
        node.version = None
        model.opset_imports.setdefault(node.domain, 1)
    model.opset_imports[""] = OPSET


def _forget_origins(model: ir.Model) -> None:
    """Drop torch's metadata: it has paths and source lines of this machine."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for part in [model, model.graph, *model.graph, *values]:
        part.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of torch's exporter about packages that we do not use."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
