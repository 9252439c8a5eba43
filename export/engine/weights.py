"""Weights as inputs of a graph, described by their bytes in the bundle's files.

Export puts a Cast after a weight of another dtype, and joins experts with Concat and Unsqueeze. The
graph is cut after these nodes, so that an engine's input is the tensor that its kernel reads, and
no weight is read to build it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile

import onnx
from onnx import helper

from longllava_trt.core.dtypes import DTYPES, onnx_name
from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.core.errors import ExportError
from longllava_trt.core.manifest import WeightRecord
from longllava_trt.plugins_trt.spec import OPERATORS
from longllava_trt.plugins_trt.stored_values import StoredValue, StoredValues

__all__ = ["externalize_weights"]


def externalize_weights(
    graph: onnx.GraphProto, records: Mapping[str, WeightRecord]
) -> tuple[EngineWeight, ...]:
    """Turn a graph's weights into inputs.

    Args:
        graph: With external initializers; changed in place.
        records: The bundle's weight map.

    Returns:
        The new inputs, in order of first use.

    Raises:
        ExportError: If an initializer is not in the weight map, or two inputs would get one name.
    """
    joined = {
        name: _engine_weight(graph.name, value, records)
        for name, value in StoredValues(graph).items()
        if value.is_external
    }
    cut: dict[str, EngineWeight] = {}
    for node in graph.node:
        if node.output[0] in joined:
            continue
        for place, value in enumerate(node.input):
            if value in joined and value not in cut:
                cut[value] = replace(joined[value], name=_input_name(joined[value], node, place))
            if value in cut:
                node.input[place] = cut[value].name
    twice = [name for name, times in Counter(w.name for w in cut.values()).items() if times > 1]
    if twice:
        raise ExportError(
            f"{graph.name}: weights must be used in one form, got {', '.join(twice)} in several; export the bundle again"
        )
    for place in reversed(range(len(graph.node))):
        if graph.node[place].output[0] in joined:
            del graph.node[place]
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in joined:
            del graph.initializer[place]
    graph.input.extend(
        helper.make_tensor_value_info(w.name, DTYPES[w.dtype].onnx, w.shape) for w in cut.values()
    )
    return tuple(cut.values())


def _engine_weight(
    where: str, value: StoredValue, records: Mapping[str, WeightRecord]
) -> EngineWeight:
    """Return a stored value as bytes of the bundle's files; it has no name yet."""
    unknown = [weight.name for weight in value.weights if weight.name not in records]
    if unknown:
        raise ExportError(
            f"{where}: weight '{unknown[0]}' is not in the manifest's weight map; export the bundle again"
        )
    parts = [_part(weight.name, records[weight.name]) for weight in value.weights]
    return EngineWeight(
        name="", shape=value.shape, dtype=_bound_dtype(onnx_name(value.dtype)), parts=tuple(parts)
    )


def _part(name: str, record: WeightRecord) -> WeightPart:
    return WeightPart(
        name=name,
        file=record.file,
        offset=record.offset,
        nbytes=record.nbytes,
        dtype=_bound_dtype(record.dtype),
    )


def _bound_dtype(dtype: str) -> str:
    """Return the dtype of a binding.

    Bytes with two codes are bound as int8, because TensorRT gives plugins no uint8.
    """
    return "int8" if dtype == "uint8" else dtype


def _input_name(weight: EngineWeight, node: onnx.NodeProto, place: int) -> str:
    """Return the checkpoint's name; for joined weights, their prefix and the operator's name."""
    names = [part.name for part in weight.parts]
    if len(names) == 1:
        return names[0]
    words_of_all = zip(*(name.split(".") for name in names), strict=False)
    prefix = ".".join(
        words[0] for words in takewhile(lambda words: len(set(words)) == 1, words_of_all)
    )
    specs = {(spec.domain, spec.op_type): spec for spec in OPERATORS}
    spec = specs.get((node.domain, node.op_type))
    word = (*spec.inputs, *spec.optional_inputs)[place].name if spec else node.input[place]
    return f"{prefix}.{word}"
