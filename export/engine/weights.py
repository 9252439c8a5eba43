"""Weights leave the graph: each becomes an input, described by the bytes it is made of.

Export puts a Cast behind a weight whose dtype differs, and joins experts with Concat and Unsqueeze. The cut is made
behind these nodes, so that an engine's input is what its kernel reads, and no weight is read to build it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import onnx
from onnx import helper, numpy_helper

from longllava_trt.core.dtypes import DTYPES, onnx_name
from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.core.errors import ExportError
from longllava_trt.core.manifest import WeightRecord
from longllava_trt.plugins_trt.spec import OPERATORS

__all__ = ["externalize_weights"]


def externalize_weights(
    graph: onnx.GraphProto, records: Mapping[str, WeightRecord]
) -> tuple[EngineWeight, ...]:
    """Make inputs of a graph's weights.

    Args:
        graph: With external initializers; changed in place.
        records: The bundle's weight map.

    Returns:
        The new inputs, in order of first use.

    Raises:
        ExportError: If an initializer is not in the weight map, or two inputs would get one name.
    """
    joined = _joined_values(graph, records)
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


def _joined_values(
    graph: onnx.GraphProto, records: Mapping[str, WeightRecord]
) -> dict[str, EngineWeight]:
    """Return the values that are weights, or weights in a row, by name."""
    joined, constants = {}, {}
    for init in graph.initializer:
        if init.external_data:
            joined[init.name] = _stored(graph.name, init, records)
        else:
            constants[init.name] = init
    for node in graph.node:
        found = [joined[name] for name in node.input if name in joined]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        whole = len(found) == len(node.input)
        if node.op_type == "Cast" and whole and _is_as_stored(found[0]):
            joined[node.output[0]] = replace(found[0], dtype=onnx_name(attributes["to"]))
        elif node.op_type == "Concat" and whole and attributes["axis"] == 0:
            joined[node.output[0]] = _in_a_row(found)
        elif node.op_type == "Unsqueeze" and found and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            if axes == [0]:
                joined[node.output[0]] = replace(found[0], shape=(1, *found[0].shape))
    return joined


def _stored(
    place: str, init: onnx.TensorProto, records: Mapping[str, WeightRecord]
) -> EngineWeight:
    if init.name not in records:
        raise ExportError(
            f"{place}: weight '{init.name}' is not in the manifest's weight map; export the bundle again"
        )
    record = records[init.name]
    # two codes a byte: TensorRT gives plugins no uint8, and to the kernel a byte is a byte
    dtype = "int8" if record.dtype == "uint8" else record.dtype
    part = WeightPart(
        name=init.name,
        file=record.file,
        offset=record.offset,
        nbytes=record.nbytes,
        dtype=dtype,
    )
    return EngineWeight(name="", shape=tuple(init.dims), dtype=dtype, parts=(part,))


def _is_as_stored(weight: EngineWeight) -> bool:
    """Tell whether nothing has cast it yet: two casts in turn are not one."""
    return all(part.dtype == weight.dtype for part in weight.parts)


def _in_a_row(weights: Sequence[EngineWeight]) -> EngineWeight:
    first = weights[0]
    return EngineWeight(
        name="",
        shape=(sum(w.shape[0] for w in weights), *first.shape[1:]),
        dtype=first.dtype,
        parts=tuple(part for w in weights for part in w.parts),
    )


def _input_name(weight: EngineWeight, node: onnx.NodeProto, place: int) -> str:
    """Return the checkpoint's name; of several joined, what their names begin with and the operator's own word."""
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
