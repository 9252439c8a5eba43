"""Quantised experts in a traced decoder, instead of the checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from longllava_trt.core.weight_formats import WEIGHT_FORMATS, MoeQuant
from longllava_trt.export.quantisation.expert_files import expert_records
from longllava_trt.export.weights import ir_dtype
from longllava_trt.models.parameters import experts_path
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec
from longllava_trt.plugins_trt.spec import SPARSE_MOE

__all__ = ["read_quantised_experts"]


def read_quantised_experts(graph: ir.Graph, config: ModelSpec, *, quant: MoeQuant) -> None:
    """Give every `SparseMoE` its layer's codes and scales; nodes that stack experts stay unused.

    Args:
        graph: Weights are inputs; changed in place.
        config: The model.
        quant: `w8a16` or `w4a16`.
    """
    name_of = family_of(config).tensor_name
    prefixes = {name_of(experts_path(layer)): layer for layer in config.decoder.moe_layers}
    for node in list(graph):
        if (node.domain, node.op_type) != (SPARSE_MOE.domain, SPARSE_MOE.op_type):
            continue
        records = expert_records(config, _layer_behind(node.inputs[2], prefixes), quant)
        node.resize_inputs(2 + len(records))
        for place, (name, record) in enumerate(records.items(), start=2):
            kind, shape = ir.TensorType(ir_dtype(record.dtype)), ir.Shape(record.shape)
            value = ir.Value(name=name, type=kind, shape=shape)
            graph.inputs.append(value)
            node.replace_input_with(place, value)
        node.attributes.add(ir.AttrString("weight_format", WEIGHT_FORMATS[quant].codec))


def _layer_behind(value: ir.Value | None, prefixes: Mapping[str, int]) -> int:
    """Return the layer whose experts a value is made of, by the prefix of their names."""
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0]
    name = (value and value.name) or ""
    found = [layer for prefix, layer in prefixes.items() if name.startswith(prefix)]
    assert len(found) == 1, "Bug: experts are stacked from one layer's weights"
    return found[0]
